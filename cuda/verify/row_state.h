// What kernels find out about rows of logits.
//
// The order of preference of a row's tokens (higher logits first, lower ids first among equals) is
// the order of the tokens' codes. The kept tokens are those up to a code, the cut.
#ifndef FORERUN_CUDA_VERIFY_ROW_STATE_H_
#define FORERUN_CUDA_VERIFY_ROW_STATE_H_

#include <cstddef>
#include <cstdint>

#include "cpp/tensor/dtype.h"
#include "cpp/util/host_device.h"
#include "forerun/types.h"

namespace forerun::cuda {

// A number of weights' units of 2^-32. Sums have no rounding, hence no order.
using Mass = unsigned long long;
// A token's position in the order of preference.
using Code = unsigned long long;

inline constexpr TokenId kNoToken = 0x7fffffff;
// The cut of all tokens above -infinity: after the lowest finite logit.
inline constexpr Code kKeepAllCode = Code{0xff7fffff} << 32 | kNoToken;

// Of a logit that is not NaN. -0 counts as 0.
FORERUN_HOST_DEVICE inline Code CodeOf(float logit, TokenId token) {
  const auto bits = __builtin_bit_cast(std::uint32_t, logit == 0.0f ? 0.0f : logit);
  const std::uint32_t descending = (bits >> 31) != 0 ? bits : bits ^ 0x7fffffffu;
  return Code{descending} << 32 | static_cast<std::uint32_t>(token);
}
FORERUN_HOST_DEVICE inline float LogitOf(Code code) {
  const auto descending = static_cast<std::uint32_t>(code >> 32);
  const std::uint32_t bits = (descending >> 31) != 0 ? descending : descending ^ 0x7fffffffu;
  return __builtin_bit_cast(float, bits);
}
FORERUN_HOST_DEVICE inline TokenId TokenOf(Code code) {
  return static_cast<TokenId>(code & 0xffffffffu);
}

// A block reads a row tile by tile. Each of its threads has kQuads x 4 tokens of a tile, a group.
inline constexpr int kRowThreads = 128;
inline constexpr int kQuads = 4;
inline constexpr int kTileTokens = kRowThreads * kQuads * 4;
inline constexpr int kDepthBins = 1024;
FORERUN_HOST_DEVICE inline int NumTiles(int vocab_size) {
  return (vocab_size + kTileTokens - 1) / kTileTokens;
}

// Rows of logits in device memory, `stride` elements apart: float32, bfloat16 or float16.
struct DeviceLogits {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t stride = 0;
};

enum RowStatus : std::int32_t {
  kRowOk = 0,
  kRowBroken = 1,  // broken_token has NaN or +infinity and is the first that does
  kRowEmpty = 2,   // every logit is -infinity
};

// What SampleRows writes for each row from which a token is sampled.
struct RowState {
  std::int32_t status;  // RowStatus; if it is not kRowOk, only broken_* is meant
  TokenId broken_token;
  float broken_logit;
  float max;        // of the edited logits
  TokenId sampled;  // what SampleToken samples from the row
  // Whether more kernels are needed for `sampled`, `cut` and `mass`. False in the end.
  std::int16_t is_pending;
  // Whether the masses of the row's tiles hold what they say.
  std::int16_t has_tile_masses;
  // The last kept token and the weight of all kept ones, as KeepTokens. Only of rows with
  // SampleRow::needs_mass.
  Code cut;
  Mass mass;
};

// What a scan found in a tile of a row.
struct TileState {
  Code first;         // kKeepAllCode: every logit is -infinity
  Code last;          // with a finite logit
  double best_score;  // of SampleToken, as if `first` were the row's; -infinity: none
  TokenId broken;     // the first with NaN or +infinity, or kNoToken
  std::int32_t unused;
  Mass mass;  // of its kept tokens, where RowState::has_tile_masses
};

// Device memory of SampleRows.
struct RowWorkspace {
  RowState* states;  // [rows]
  TileState* tiles;  // [rows, tiles]
  Code* groups;      // [rows, tiles, kRowThreads]: the first token of each group
  Mass* bins;  // [rows, kDepthBins]: weight of the tokens by how far they are below the highest

  static std::size_t NumBytes(int max_rows, int vocab_size);
  // In `memory`, aligned to 16, of NumBytes.
  static RowWorkspace In(void* memory, int max_rows, int vocab_size);
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_ROW_STATE_H_
