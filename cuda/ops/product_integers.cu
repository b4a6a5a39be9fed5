// Of integer weights on the tensor cores: integers of up to eight bits are exact in bfloat16, and x
// is rounded to it. The products of a group are summed from zero; then the sum is scaled, and the
// group's minimum times the sum of its x, which a matrix of ones gives, is added.
#include "cuda/ops/integer_tile.cuh"
#include "cuda/ops/launch.h"
#include "cuda/ops/product_integers.h"
#include "cuda/ops/product_tile.cuh"
#include "cuda/portable.cuh"

namespace forerun::cuda {
namespace {

// A group of a unit: its weights in bfloat16, and what scales a lane's two outputs.
template <int kSteps>
struct LaneGroup {
  unsigned words[kSteps][4];
  GroupScale scales[2];
};

// The group number `number` of the inputs, whose steps begin with first_step of the unit's: a
// constant where this is unrolled, so that the unit stays in registers.
template <int kBits, int kSteps>
__device__ void ReadGroup(const LaneUnit<kBits>& unit, int first_step, const Matrix& matrix,
                          const IntegerTile& tile, int number, LaneGroup<kSteps>& group) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const unsigned stored = unit.Stored((first_step + step) * 4 + word);
      group.words[step][word] = ToBFloat16Pair<kBits>(stored, matrix.integers.zero);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    group.scales[half] = ScaleAt(matrix.integers, tile.scales, number, Lane() / 4 + 8 * half);
  }
}

// Adds a group's part of the sums of eight rows.
template <int kTiles, int kSteps>
__device__ void AddGroup(const LaneGroup<kSteps> (&groups)[kTiles], bool has_minimum,
                         const unsigned (&inputs)[kSteps][2], float (&sums)[kTiles][4]) {
  float x_sums[4] = {};
  if (has_minimum) {
    constexpr unsigned kOne = 0x3f803f80u;  // twice
    const unsigned ones[4] = {kOne, kOne, kOne, kOne};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) MultiplyAdd(x_sums, ones, inputs[step]);
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    float products[4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      MultiplyAdd(products, groups[i].words[step], inputs[step]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const GroupScale& scale = groups[i].scales[e / 2];
      if (has_minimum) sums[i][e] = fmaf(scale.minimum, x_sums[e], sums[i][e]);
      sums[i][e] = fmaf(scale.scale, products[e], sums[i][e]);
    }
  }
}

template <int kBits, int kTiles, int kRowTiles>
__global__ void __launch_bounds__(kProductThreads, kRowTiles > 2 ? 1 : 2)
    MultiplyTiles(const __grid_constant__ Matrix matrix, const __grid_constant__ ProductTask task) {
  constexpr int kSteps = kBits == 6 ? 1 : 2;  // of a group
  const int first_row = static_cast<int>(blockIdx.y) * kRowTiles * kRowsPerTile;
  const InputReader reader(task, matrix.num_inputs);
  const bool has_minimum = matrix.integers.has_minimum();
  float sums[kRowTiles][kTiles][4] = {};
  float squares[kRowTiles] = {};
  IntegerTile tiles[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    // Past the last tile the last one once more, whose sums are not used.
    tiles[i] = TileAt(matrix, min(TileOf<kTiles>(matrix, task.gated, i), matrix.num_tiles - 1));
  }
  const Steps units = StepsOf(NumUnits(matrix.num_inputs), Warp());
  for (int unit = units.begin; unit < units.end; ++unit) {
    LaneUnit<kBits> loaded[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      loaded[i].Load(tiles[i].units + std::int64_t{unit} * UnitBytes(kBits), Lane());
    }
#pragma unroll
    for (int first = 0; first < 4; first += kSteps) {
      LaneGroup<kSteps> groups[kTiles];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        ReadGroup(loaded[i], first, matrix, tiles[i], (4 * unit + first) / kSteps, groups[i]);
      }
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        if (first_row + n * kRowsPerTile >= task.num_rows) break;
        unsigned inputs[kSteps][2];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          reader.Load(first_row + n * kRowsPerTile, 4 * unit + first + step, squares[n],
                      inputs[step]);
        }
        AddGroup(groups, has_minimum, inputs, sums[n]);
      }
    }
  }
  FinishBlock<kTiles, kRowTiles>(matrix, task, first_row, sums, squares);
}

template <int kBits, int kTiles, int kRowTiles>
cudaError_t RunTiles(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  const dim3 grid(NumTileBlocks<kTiles>(matrix, task.gated),
                  NumBlocks(task.num_rows, kRowTiles * kRowsPerTile));
  return Run({grid, kProductThreads, stream}, MultiplyTiles<kBits, kTiles, kRowTiles>, matrix,
             task);
}

template <int kBits>
cudaError_t RunRows(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  if (task.num_rows > 16) return RunTiles<kBits, 2, 8>(matrix, task, stream);
  if (task.num_rows > 8) {
    return task.gated ? RunTiles<kBits, 2, 2>(matrix, task, stream)
                      : RunTiles<kBits, 1, 2>(matrix, task, stream);
  }
  return task.gated ? RunTiles<kBits, 2, 1>(matrix, task, stream)
                    : RunTiles<kBits, 1, 1>(matrix, task, stream);
}

}  // namespace

cudaError_t MultiplyIntegers(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  switch (matrix.integers.bits) {
    case 4:
      return RunRows<4>(matrix, task, stream);
    case 5:
      return RunRows<5>(matrix, task, stream);
    case 6:
      return RunRows<6>(matrix, task, stream);
    default:
      return RunRows<8>(matrix, task, stream);
  }
}

}  // namespace forerun::cuda
