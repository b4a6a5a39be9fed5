// Integer weights on the GPU: how a tile of them is laid out and read.
//
// A tile is units of 64 inputs, four steps of MultiplyAdd, and then what scales its groups. Of a
// unit a lane holds sixteen pairs of what is stored, those of the words of MultiplyAdd's `a`, pair
// 4 * step + word:
//
//   int8         two loads of 16 bytes: word 2i and 2i + 1 are byte 0 and 2, byte 1 and 3 of load
//                word i, as numbers with a sign
//   other bits   one load of 16 bytes, a word for a step: word i is nibble i and nibble i + 4
//   bits 4 and 5 kept apart, 4 bytes of the lane (5 bits: bit p and p + 16 are pair p's) or 8 (6
//                bits: of word p / 8, the two bits from 2 (p % 8) on, and those 16 higher)
//
// Scales, of each of the sixteen outputs in turn:
//
//   kScale      group after group, float16
//   kMinimum    group after group, float16 of the scale and of the minimum
//   kSuper      of 256 inputs: float16 of scale and minimum; then of 8 groups, a byte of each
//   kSubScale   of 256 inputs: float16; then of 16 groups, a byte with a sign
//   kZeroPoint  of 128 inputs: 24 bits of the scale, 8 of the zero point below them
#ifndef FORERUN_CUDA_OPS_INTEGER_TILE_CUH_
#define FORERUN_CUDA_OPS_INTEGER_TILE_CUH_

#include "cpp/ops/weight_formula.h"
#include "cuda/ops/matrix.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {

inline constexpr int kPairs = 16;           // of a lane in a unit
inline constexpr int kLoadBytes = 16 * 32;  // that the lanes of a warp load together

inline __host__ __device__ int UnitBytes(int bits) {
  return bits == 8 ? 2 * kLoadBytes : kLoadBytes + (bits - 4) * 4 * kWarpSize;
}

// Inputs that share a piece of the scales, and the bytes of a piece.
struct ScalePiece {
  int inputs;
  int bytes;
};
inline __host__ __device__ ScalePiece PieceOf(ScaleKind kind) {
  switch (kind) {
    case ScaleKind::kScale:
      return {kWeightGroup, 2 * kTileOutputs};
    case ScaleKind::kMinimum:
      return {kWeightGroup, 4 * kTileOutputs};
    case ScaleKind::kSuper:
      return {256, 4 * kTileOutputs + 8 * 2 * kTileOutputs};
    case ScaleKind::kSubScale:
      return {256, 2 * kTileOutputs + 16 * kTileOutputs};
    case ScaleKind::kZeroPoint:
      break;
  }
  return {128, 4 * kTileOutputs};
}
inline __host__ __device__ int NumPieces(ScaleKind kind, int num_inputs) {
  // Of whole units, whose padding has scales too.
  const int padded = NumUnits(num_inputs) * kUnitInputs, inputs = PieceOf(kind).inputs;
  return (padded + inputs - 1) / inputs;
}
inline __host__ __device__ std::int64_t IntegerTileBytes(const IntegerFormat& format,
                                                         int num_inputs) {
  return std::int64_t{NumUnits(num_inputs)} * UnitBytes(format.bits) +
         std::int64_t{NumPieces(format.scales, num_inputs)} * PieceOf(format.scales).bytes;
}

// A tile of a matrix.
struct IntegerTile {
  const unsigned char* units;
  const unsigned char* scales;
};
__device__ inline IntegerTile TileAt(const Matrix& matrix, int tile) {
  const auto* units = static_cast<const unsigned char*>(matrix.tiles) +
                      tile * IntegerTileBytes(matrix.integers, matrix.num_inputs);
  return {units,
          units + std::int64_t{NumUnits(matrix.num_inputs)} * UnitBytes(matrix.integers.bits)};
}

__device__ inline float HalfAt(const unsigned char* bytes) {
  return __half2float(__ushort_as_half(*reinterpret_cast<const unsigned short*>(bytes)));
}

// What scales a group of output `row` of a tile.
__device__ inline GroupScale ScaleAt(const IntegerFormat& format, const unsigned char* scales,
                                     int group, int row) {
  const ScalePiece piece = PieceOf(format.scales);
  const int groups = piece.inputs / format.group;
  const unsigned char* own = scales + std::int64_t{group / groups} * piece.bytes;
  StoredScale stored;
  switch (format.scales) {
    case ScaleKind::kScale:
      stored.scale = HalfAt(own + 2 * row);
      break;
    case ScaleKind::kMinimum:
      stored.scale = HalfAt(own + 4 * row);
      stored.minimum = HalfAt(own + 4 * row + 2);
      break;
    case ScaleKind::kSuper: {
      const unsigned char* sub = own + 4 * kTileOutputs + (group % groups * kTileOutputs + row) * 2;
      stored.scale = HalfAt(own + 4 * row);
      stored.minimum = HalfAt(own + 4 * row + 2);
      stored.sub_scale = sub[0];
      stored.sub_minimum = sub[1];
      break;
    }
    case ScaleKind::kSubScale:
      stored.scale = HalfAt(own + 2 * row);
      stored.sub_scale =
          static_cast<signed char>(own[2 * kTileOutputs + group % groups * kTileOutputs + row]);
      break;
    case ScaleKind::kZeroPoint: {
      const unsigned bits = reinterpret_cast<const unsigned*>(own)[row];
      stored.scale = __uint_as_float(bits & 0xffffff00u);
      stored.zero = static_cast<int>(bits & 0xffu);
    }
  }
  return ScaleOf(format, stored);
}

// What a lane holds of a unit.
template <int kBits>
struct LaneUnit {
  static constexpr int kHighWords = kBits == 8 ? 0 : kBits - 4;

  __device__ void Load(const unsigned char* unit, int lane) {
    low[0] = __ldcs(reinterpret_cast<const uint4*>(unit) + lane);
    if constexpr (kBits == 8) {
      low[1] = __ldcs(reinterpret_cast<const uint4*>(unit + kLoadBytes) + lane);
    }
    if constexpr (kBits == 5) {
      high[0] = __ldcs(reinterpret_cast<const unsigned*>(unit + kLoadBytes) + lane);
    }
    if constexpr (kBits == 6) {
      const uint2 both = __ldcs(reinterpret_cast<const uint2*>(unit + kLoadBytes) + lane);
      high[0] = both.x;
      high[1] = both.y;
    }
  }

  // The stored numbers of a pair, each in the low bits of half a word; of 8 bits with a sign.
  __device__ unsigned Stored(int pair) const {
    if constexpr (kBits == 8) {
      return LowWord(pair / 2) >> pair % 2 * 8 & 0x00ff00ffu;
    } else {
      unsigned stored = LowWord(pair / 4) >> pair % 4 * 4 & 0x000f000fu;
      if constexpr (kBits == 5) stored |= (high[0] >> pair & 0x00010001u) << 4;
      if constexpr (kBits == 6) stored |= (high[pair / 8] >> pair % 8 * 2 & 0x00030003u) << 4;
      return stored;
    }
  }

  __device__ unsigned LowWord(int i) const {
    const uint4& load = low[i / 4];
    return i % 4 == 0 ? load.x : i % 4 == 1 ? load.y : i % 4 == 2 ? load.z : load.w;
  }

  uint4 low[kBits == 8 ? 2 : 1];
  unsigned high[kHighWords == 0 ? 1 : kHighWords];
};

// Two stored numbers, less the format's zero, as bfloat16. As a bfloat16 of 128 and more has units
// of 1, numbers of seven bits become one by setting its exponent; the difference is exact.
template <int kBits>
__device__ unsigned ToBFloat16Pair(unsigned stored, int zero) {
  constexpr unsigned k128 = 0x43004300u;
  unsigned from, less;
  if constexpr (kBits == 8) {
    // The sign bit counts -128: with it, 256 is taken off.
    from = (stored & 0x007f007fu) | k128;
    less = (stored & 0x00800080u) | k128;
  } else {
    from = stored | k128;
    less = k128 | static_cast<unsigned>(zero) << 16 | static_cast<unsigned>(zero);
  }
  const __nv_bfloat162 difference = __hsub2(reinterpret_cast<const __nv_bfloat162&>(from),
                                            reinterpret_cast<const __nv_bfloat162&>(less));
  return reinterpret_cast<const unsigned&>(difference);
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_INTEGER_TILE_CUH_
