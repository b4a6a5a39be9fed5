// The CPU's inner loops: a table of functions per instruction set.
//
// Each instruction set has a source of its own, kernels_*.cc, that instantiates the same templates;
// util/simd/isa.h has the rules for what they may use: of this header plain types, and functions
// that are always inlined.
#ifndef FORERUN_CPP_OPS_CPU_KERNELS_H_
#define FORERUN_CPP_OPS_CPU_KERNELS_H_

#include <cstdint>

#include "cpp/ops/activation.h"
#include "cpp/util/simd/lanes.h"

namespace forerun {

enum class Isa;

// y[0, num_rows)[16 * tile_begin, 16 * tile_end) = x W^T (+ bias) (+ y).
//
//   weights  tiles of a format, as weight_tile.h says
//   x        [num_rows, num_inputs] float32; for bfloat16 weights, where the table has round_row,
//            [num_rows, num_pairs, 2] bfloat16
struct MatMulTask {
  const void* weights = nullptr;
  int num_inputs = 0;
  int num_outputs = 0;
  int tile_begin = 0;
  int tile_end = 0;

  const void* x = nullptr;
  std::int64_t x_stride = 0;  // in elements of x
  int num_rows = 0;

  const float* bias = nullptr;  // [num_outputs] or null
  bool accumulate = false;
  float* y = nullptr;
  std::int64_t y_stride = 0;
};

inline constexpr int kNoTail = 0x7fffffff;

// Consecutive positions of one sequence, and the query heads that share one KV head.
struct AttentionTask {
  const float* query = nullptr;  // row i, head h: query + i * query_stride + h * head_dim
  std::int64_t query_stride = 0;
  float* out = nullptr;  // as query
  std::int64_t out_stride = 0;
  int num_rows = 0;
  int num_heads = 0;
  int head_dim = 0;

  int position = 0;  // of row 0
  int sliding_window = 0;
  int first_position = 0;
  float scale = 1.0f;
  float soft_cap = 0.0f;

  // Of this layer and KV head, in block 0; see kv/layout.h.
  const void* keys = nullptr;
  const void* values = nullptr;
  std::int64_t block_stride = 0;   // elements from a block to the next
  std::int64_t head_elements = 0;  // keys, or values, of this head in one block
  const std::int32_t* block_table = nullptr;
  int block_size = 0;
  int element_bytes = 0;

  // Positions from tail_position on, a multiple of kLanes, lie in memory of this head alone, in
  // consecutive blocks: position tail_position in slot tail_slot, counted from tail_keys
  // and tail_values.
  int tail_position = kNoTail;
  int tail_slot = 0;
  const void* tail_keys = nullptr;
  const void* tail_values = nullptr;

  // Parts of kPositionsPerPart positions to attend to: those that any of the rows sees.
  int part_begin = 0;
  int part_end = 0;
  // When set, there is one part, and its state goes here instead of into `out`.
  float* part_state = nullptr;

  float* scratch = nullptr;  // AttentionScratchFloats(...), aligned to 64 bytes
};

inline constexpr int kMaxQueriesPerTask = 64;  // rows times heads
// Multiples of these positions are where a softmax may rescale, and where it starts anew.
inline constexpr int kPositionsPerChunk = 64;
inline constexpr int kPositionsPerPart = 256;

struct CpuKernels {
  void (*matmul_bfloat16)(const MatMulTask& task);
  void (*matmul_float32)(const MatMulTask& task);
  // Null: matmul_bfloat16 takes float32 activations. Else x[n] -> out[n rounded up to 2].
  void (*round_row)(const float* x, int n, std::uint16_t* out);

  void (*attention)(const AttentionTask& task);
  // Puts the parts of a task together, each AttentionStateFloats after the one before.
  void (*join_attention)(const AttentionTask& task, float* part_states);

  // One row each.
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
  void (*rope)(float* x, int head_dim, const float* cos_sin);
  void (*gate)(const float* gate, const float* up, int n, Activation kind, float* out);
  void (*add)(const float* y, int n, float* x);
  void (*scale)(float factor, int n, float* x);
  void (*soft_cap)(float* x, int n, float cap);
};

// Always inlined, as each of those sources includes this.

[[gnu::always_inline]] constexpr int PaddedHeadDim(int head_dim) {
  return (head_dim + kLanes - 1) / kLanes * kLanes;
}

// Outputs, sums and maxima of that many queries.
[[gnu::always_inline]] constexpr std::int64_t AttentionStateFloats(int num_queries, int head_dim) {
  const std::int64_t num_floats = num_queries * (PaddedHeadDim(head_dim) + kLanes + 1);
  return (num_floats + kLanes - 1) / kLanes * kLanes;
}

// Two states and the scores of a chunk.
[[gnu::always_inline]] constexpr std::int64_t AttentionScratchFloats(int num_queries,
                                                                     int head_dim) {
  return 2 * AttentionStateFloats(num_queries, head_dim) + num_queries * kPositionsPerChunk;
}

namespace portable {
extern const CpuKernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const CpuKernels kKernels;
}
namespace avx512 {
extern const CpuKernels kKernels;
}
namespace avx512bf16 {
extern const CpuKernels kKernels;
}
#endif

const CpuKernels& CpuKernelsOf(Isa isa);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_KERNELS_H_
