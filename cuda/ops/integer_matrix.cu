// Integer weights into tiles, and floats into integers: once, at load, so that nothing is unrolled.
#include "cpp/ops/weight_source.h"
#include "cuda/ops/integer_tile.cuh"
#include "cuda/ops/launch.h"
#include "cuda/ops/matrix.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {
namespace {

// An IntegerView with the numbers that its functions would give.
struct Source {
  IntegerView view;
  IntegerFormat format;
  int num_groups;
  int num_scales;
};

__device__ unsigned StoredValue(const Source& source, int output, int input) {
  const IntegerView& view = source.view;
  if (output >= view.num_outputs || input >= view.num_inputs) return 0;
  const int value = view.values[std::int64_t{output} * view.num_inputs + input];
  return static_cast<unsigned>(source.format.bits == 8 ? value : value + source.format.zero) &
         0xffu;
}

// A thread makes what a lane holds of a unit.
__global__ void PackUnits(Source source, int num_tiles, std::int64_t tile_bytes,
                          unsigned char* tiles) {
  const int bits = source.format.bits, num_units = NumUnits(source.view.num_inputs);
  const std::int64_t count = std::int64_t{num_tiles} * num_units * kWarpSize;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    const int lane = static_cast<int>(i % kWarpSize);
    const int unit = static_cast<int>(i / kWarpSize % num_units);
    const int tile = static_cast<int>(i / kWarpSize / num_units);
    unsigned low[8] = {}, high[2] = {};
#pragma unroll 1
    for (int pair = 0; pair < kPairs; ++pair) {
      const int output = tile * kTileOutputs + lane / 4 + pair % 2 * 8;
      const int input =
          unit * kUnitInputs + pair / 4 * kStepInputs + lane % 4 * 2 + pair % 4 / 2 * 8;
      const unsigned stored =
          StoredValue(source, output, input) | StoredValue(source, output, input + 1) << 16;
      if (bits == 8) {
        low[pair / 2] |= stored << pair % 2 * 8;
      } else {
        low[pair / 4] |= (stored & 0x000f000fu) << pair % 4 * 4;
        const unsigned above = stored >> 4 & 0x00030003u;
        if (bits == 5) high[0] |= above << pair;
        if (bits == 6) high[pair / 8] |= above << pair % 8 * 2;
      }
    }
    unsigned char* own = tiles + tile * tile_bytes + std::int64_t{unit} * UnitBytes(bits);
    for (int load = 0; load < (bits == 8 ? 2 : 1); ++load) {
      reinterpret_cast<uint4*>(own + load * kLoadBytes)[lane] = {
          low[4 * load], low[4 * load + 1], low[4 * load + 2], low[4 * load + 3]};
    }
    auto* above = reinterpret_cast<unsigned*>(own + kLoadBytes);
    if (bits == 5) above[lane] = high[0];
    if (bits == 6) above[2 * lane] = high[0];
    if (bits == 6) above[2 * lane + 1] = high[1];
  }
}

// What an output has of group `group`, 0 past its end.
__device__ unsigned char Byte(const std::uint8_t* bytes, const Source& source, int output,
                              int group) {
  if (output >= source.view.num_outputs || group >= source.num_groups) return 0;
  return bytes[std::int64_t{output} * source.num_groups + group];
}
__device__ unsigned short Half(const std::uint16_t* halves, const Source& source, int output,
                               int i) {
  if (output >= source.view.num_outputs || i >= source.num_scales) return 0;
  return halves[std::int64_t{output} * source.num_scales + i];
}

// A thread writes what a piece of the scales has of an output.
__global__ void PackScales(Source source, int num_tiles, std::int64_t tile_bytes,
                           unsigned char* tiles) {
  const IntegerView& view = source.view;
  const ScaleKind kind = source.format.scales;
  const ScalePiece piece = PieceOf(kind);
  const int num_pieces = NumPieces(kind, view.num_inputs);
  const int groups = piece.inputs / source.format.group;
  const std::int64_t offset =
      std::int64_t{NumUnits(view.num_inputs)} * UnitBytes(source.format.bits);
  const std::int64_t count = std::int64_t{num_tiles} * num_pieces * kTileOutputs;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    const int row = static_cast<int>(i % kTileOutputs);
    const int number = static_cast<int>(i / kTileOutputs % num_pieces);
    const int tile = static_cast<int>(i / kTileOutputs / num_pieces);
    const int output = tile * kTileOutputs + row;
    unsigned char* own = tiles + tile * tile_bytes + offset + std::int64_t{number} * piece.bytes;
    auto* halves = reinterpret_cast<unsigned short*>(own);
    if (kind == ScaleKind::kZeroPoint) {
      const bool has = output < view.num_outputs && number < source.num_scales;
      const std::int64_t at = std::int64_t{output} * source.num_scales + number;
      reinterpret_cast<unsigned*>(own)[row] =
          has ? __float_as_uint(view.wide_scales[at]) | view.zeros[at] : 0;
    } else if (kind == ScaleKind::kScale || kind == ScaleKind::kSubScale) {
      halves[row] = Half(view.scales, source, output, number);
    } else {
      halves[2 * row] = Half(view.scales, source, output, number);
      halves[2 * row + 1] = Half(view.minima, source, output, number);
    }
    for (int group = 0; group < groups; ++group) {
      const int in_row = number * groups + group;
      if (kind == ScaleKind::kSuper) {
        unsigned char* sub = own + 4 * kTileOutputs + (group * kTileOutputs + row) * 2;
        sub[0] = Byte(view.sub_scales, source, output, in_row);
        sub[1] = Byte(view.sub_minima, source, output, in_row);
      } else if (kind == ScaleKind::kSubScale) {
        own[2 * kTileOutputs + group * kTileOutputs + row] =
            Byte(view.sub_scales, source, output, in_row);
      }
    }
  }
}

constexpr unsigned short kNaN16 = 0x7e00;

// To the nearest integer, ties to even. REQUIRES: |x| < 2^22.
__device__ float RoundAndClamp(float x, float least, float most) {
  const float rounded = (x + 12582912.0f) - 12582912.0f;
  return fmaxf(fminf(rounded, most), least);
}

// The float16 nearest to a magnitude of those that are not smaller.
__device__ unsigned short HalfAtLeast(float magnitude) {
  const __half nearest = __float2half_rn(magnitude);
  const unsigned short bits = __half_as_ushort(nearest);
  return __half2float(nearest) < magnitude ? static_cast<unsigned short>(bits + 1) : bits;
}

// The scale of kInt4 that fits a group best (cpp/ops/cpu/quantize_weights.h has the formula, and
// the order of the sums).
__device__ float FittedScale(const float (&weights)[kWeightGroup]) {
  float least = weights[0], most = weights[0];
#pragma unroll 1
  for (int i = 1; i < kWeightGroup; ++i) {
    least = fminf(least, weights[i]);
    most = fmaxf(most, weights[i]);
  }
  const float farthest = most < 0.0f - least ? least : most;
  const float divisor = fabsf(farthest) > 0.0f ? farthest : 1.0f;
  float product = 0.0f, square = 0.0f;
#pragma unroll 1
  for (int i = 0; i < kWeightGroup; ++i) {
    const float unit = weights[i] / divisor;
    const float integer = RoundAndClamp(unit * -8.0f, -8.0f, 7.0f);
    const float weighted = integer * fabsf(unit);
    product = product + weighted * unit;
    square = square + weighted * integer;
  }
  return product / fmaxf(square, 1.0f) * farthest;
}

// A thread quantizes a group.
template <typename T>
__global__ void QuantizeGroups(MatrixSource source, int bits, QuantizedRows out) {
  const auto* rows = static_cast<const T*>(source.rows);
  const int num_groups = (source.num_inputs + kWeightGroup - 1) / kWeightGroup;
  const std::int64_t count = std::int64_t{source.num_outputs} * num_groups;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    const int begin = static_cast<int>(i % num_groups) * kWeightGroup;
    const std::int64_t row = i / num_groups * source.num_inputs + begin;
    const int num_own = min(kWeightGroup, source.num_inputs - begin);
    float weights[kWeightGroup];
    float magnitude = 0.0f, zero = 0.0f;  // NaN where a weight is not finite
#pragma unroll 1
    for (int k = 0; k < kWeightGroup; ++k) {
      weights[k] = k < num_own ? ToFloat(rows[row + k]) : 0.0f;
      magnitude = fmaxf(magnitude, fabsf(weights[k]));
      zero += weights[k] * 0.0f;
    }
    const bool is_finite = zero == 0.0f;
#pragma unroll 1
    for (int k = 0; k < kWeightGroup && !is_finite; ++k) weights[k] = 0.0f;
    unsigned short scale = bits == 8 ? HalfAtLeast(magnitude / 127.0f)
                                     : __half_as_ushort(__float2half_rn(FittedScale(weights)));
    if (!is_finite || (scale & 0x7c00u) == 0x7c00u) scale = kNaN16;
    const bool divides = scale != kNaN16 && (scale & 0x7fffu) != 0;
    const float divisor = divides ? __half2float(__ushort_as_half(scale)) : 1.0f;
    const float zero_point = bits == 8 ? 128.0f : 8.0f;
    out.scales[i] = scale;
#pragma unroll 1
    for (int k = 0; k < num_own; ++k) {
      const float integer = RoundAndClamp(weights[k] / divisor, -zero_point, zero_point - 1.0f);
      out.values[row + k] = static_cast<signed char>(integer);
    }
  }
}

template <typename T>
cudaError_t QuantizeAs(const MatrixSource& source, int bits, const QuantizedRows& out,
                       cudaStream_t stream) {
  const int num_groups = (source.num_inputs + kWeightGroup - 1) / kWeightGroup;
  const std::int64_t count = std::int64_t{source.num_outputs} * num_groups;
  return Run({dim3(NumElementBlocks(count)), kElementThreads, stream}, QuantizeGroups<T>, source,
             bits, out);
}

}  // namespace

cudaError_t PackIntegerTiles(const IntegerView& view, void* tiles, cudaStream_t stream) {
  const Source source = {view, IntegersOf(view.format), view.num_groups(), view.num_scales()};
  const int num_tiles = (view.num_outputs + kTileOutputs - 1) / kTileOutputs;
  const std::int64_t tile_bytes = IntegerTileBytes(source.format, view.num_inputs);
  auto* bytes = static_cast<unsigned char*>(tiles);
  const std::int64_t num_lanes = std::int64_t{num_tiles} * NumUnits(view.num_inputs) * kWarpSize;
  const cudaError_t status = Run({dim3(NumElementBlocks(num_lanes)), kElementThreads, stream},
                                 PackUnits, source, num_tiles, tile_bytes, bytes);
  if (status != cudaSuccess) return status;
  const std::int64_t num_scales =
      std::int64_t{num_tiles} * NumPieces(source.format.scales, view.num_inputs) * kTileOutputs;
  return Run({dim3(NumElementBlocks(num_scales)), kElementThreads, stream}, PackScales, source,
             num_tiles, tile_bytes, bytes);
}

cudaError_t QuantizeRows(const MatrixSource& source, WeightFormat format, const QuantizedRows& out,
                         cudaStream_t stream) {
  if (format != WeightFormat::kInt8 && format != WeightFormat::kInt4) return cudaErrorInvalidValue;
  const int bits = IntegersOf(format).bits;
  switch (source.dtype) {
    case DType::kFloat32:
      return QuantizeAs<float>(source, bits, out, stream);
    case DType::kBFloat16:
      return QuantizeAs<__nv_bfloat16>(source, bits, out, stream);
    case DType::kFloat16:
      return QuantizeAs<__half>(source, bits, out, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace forerun::cuda
