#include <type_traits>

#include "cuda/ops/integer_tile.cuh"
#include "cuda/ops/launch.h"
#include "cuda/ops/matrix.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {
namespace {

// Where lane and word of a step hold the pair of inputs from column `column` on of row `row`.
struct LaneWord {
  int lane;
  int word;
};
__device__ LaneWord WordOf(int row, int column) {
  return {row % 8 * 4 + column % 8 / 2, row / 8 + column / 8 * 2};
}

template <typename T>
__device__ float SourceValue(const T* rows, const MatrixSource& source, int output, int input) {
  if (output >= source.num_outputs || input >= source.num_inputs) return 0.0f;
  return ToFloat(rows[std::int64_t{output} * source.num_inputs + input]);
}

// A thread makes a word: two inputs of an output.
template <typename T>
__global__ void PackBFloat16(MatrixSource source, int num_tiles, __nv_bfloat162* tiles) {
  const auto* rows = static_cast<const T*>(source.rows);
  const int num_steps = NumSteps(source.num_inputs);
  const std::int64_t num_words = std::int64_t{num_tiles} * num_steps * 128;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < num_words; i += std::int64_t{gridDim.x} * blockDim.x) {
    const int word = static_cast<int>(i % 4), lane = static_cast<int>(i / 4 % 32);
    const int step = static_cast<int>(i / 128 % num_steps);
    const int output =
        static_cast<int>(i / 128 / num_steps) * kTileOutputs + lane / 4 + word % 2 * 8;
    const int input = step * kStepInputs + lane % 4 * 2 + word / 2 * 8;
    tiles[i] = __floats2bfloat162_rn(SourceValue(rows, source, output, input),
                                     SourceValue(rows, source, output, input + 1));
  }
}

__device__ void Store(float value, float& stored) { stored = value; }
__device__ void Store(float value, __half& stored) { stored = __float2half_rn(value); }

template <typename T, typename Stored>
__global__ void PackRows(MatrixSource source, int num_tiles, Stored* tiles) {
  const auto* rows = static_cast<const T*>(source.rows);
  const int num_inputs = NumSteps(source.num_inputs) * kStepInputs;
  const std::int64_t count = std::int64_t{num_tiles} * num_inputs * kTileOutputs;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    const int tile = static_cast<int>(i / kTileOutputs / num_inputs);
    Store(SourceValue(rows, source, tile * kTileOutputs + static_cast<int>(i % kTileOutputs),
                      static_cast<int>(i / kTileOutputs % num_inputs)),
          tiles[i]);
  }
}

// The tile of an output, and its number there.
struct TileRow {
  int tile;
  int row;
};
__device__ TileRow RowOf(const Matrix& matrix, int output) {
  int part = 0;
  while (part + 1 < matrix.num_parts && output >= matrix.parts[part + 1].first_output) ++part;
  const int i = output - matrix.parts[part].first_output;
  return {matrix.parts[part].first_tile + i / kTileOutputs, i % kTileOutputs};
}

// Input k of an output.
template <int kBits>
__device__ float IntegerWeight(const Matrix& matrix, TileRow own, int k) {
  const IntegerTile tile = TileAt(matrix, own.tile);
  const LaneWord in_step = WordOf(own.row, k % kStepInputs);
  LaneUnit<kBits> unit;
  unit.Load(tile.units + std::int64_t{k / kUnitInputs} * UnitBytes(kBits), in_step.lane);
  const unsigned pair = unit.Stored(k % kUnitInputs / kStepInputs * 4 + in_step.word);
  const unsigned stored = pair >> k % 2 * 16 & 0xffffu;
  const int integer = kBits == 8 ? static_cast<signed char>(stored)
                                 : static_cast<int>(stored) - matrix.integers.zero;
  return WeightOf(matrix.integers,
                  ScaleAt(matrix.integers, tile.scales, k / matrix.integers.group, own.row),
                  integer);
}

__device__ float WeightAt(const Matrix& matrix, TileRow own, int k) {
  const std::int64_t first_step = std::int64_t{own.tile} * NumSteps(matrix.num_inputs);
  switch (matrix.integers.bits) {
    case 4:
      return IntegerWeight<4>(matrix, own, k);
    case 5:
      return IntegerWeight<5>(matrix, own, k);
    case 6:
      return IntegerWeight<6>(matrix, own, k);
    case 8:
      return IntegerWeight<8>(matrix, own, k);
    default:
      break;
  }
  if (matrix.format == WeightFormat::kFloat32) {
    const std::int64_t i = (first_step * kStepInputs + k) * kTileOutputs + own.row;
    return matrix.stored == DType::kFloat16 ? ToFloat(static_cast<const __half*>(matrix.tiles)[i])
                                            : static_cast<const float*>(matrix.tiles)[i];
  }
  const LaneWord in_step = WordOf(own.row, k % kStepInputs);
  const std::int64_t lane = (first_step + k / kStepInputs) * kWarpSize + in_step.lane;
  return ToFloat(
      static_cast<const __nv_bfloat16*>(matrix.tiles)[(lane * 4 + in_step.word) * 2 + k % 2]);
}

// One block per row.
__global__ void EmbedRows(const __grid_constant__ Matrix table,
                          const __grid_constant__ EmbedTask task) {
  const int r = static_cast<int>(blockIdx.x);
  const TileRow own = RowOf(table, task.tokens[r]);
  float* out = task.out + r * task.out_stride;
  for (int k = static_cast<int>(threadIdx.x); k < table.num_inputs;
       k += static_cast<int>(blockDim.x)) {
    out[k] = task.scale * WeightAt(table, own, k);
  }
}

template <typename T>
cudaError_t PackAs(const MatrixSource& source, WeightFormat format, void* tiles,
                   cudaStream_t stream) {
  const int num_tiles = (source.num_outputs + kTileOutputs - 1) / kTileOutputs;
  const std::int64_t count =
      std::int64_t{num_tiles} * NumSteps(source.num_inputs) * kStepInputs * kTileOutputs;
  if (format == WeightFormat::kBFloat16) {
    return Run({dim3(NumElementBlocks(count / 2)), kElementThreads, stream}, PackBFloat16<T>,
               source, num_tiles, static_cast<__nv_bfloat162*>(tiles));
  }
  using Stored = std::conditional_t<std::is_same_v<T, __half>, __half, float>;
  return Run({dim3(NumElementBlocks(count)), kElementThreads, stream}, PackRows<T, Stored>, source,
             num_tiles, static_cast<Stored*>(tiles));
}

}  // namespace

std::int64_t TileBytes(const Matrix& matrix) {
  if (HasIntegers(matrix.format)) return IntegerTileBytes(matrix.integers, matrix.num_inputs);
  const std::int64_t count = std::int64_t{NumSteps(matrix.num_inputs)} * kStepInputs * kTileOutputs;
  return static_cast<std::int64_t>(SizeOf(matrix.stored)) * count;
}

cudaError_t PackTiles(const MatrixSource& source, WeightFormat format, void* tiles,
                      cudaStream_t stream) {
  switch (source.dtype) {
    case DType::kFloat32:
      return PackAs<float>(source, format, tiles, stream);
    case DType::kBFloat16:
      return PackAs<__nv_bfloat16>(source, format, tiles, stream);
    case DType::kFloat16:
      return PackAs<__half>(source, format, tiles, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t Embed(const Matrix& table, const EmbedTask& task, cudaStream_t stream) {
  return Run({dim3(static_cast<unsigned>(task.num_rows)), kElementThreads, stream}, EmbedRows,
             table, task);
}

}  // namespace forerun::cuda
