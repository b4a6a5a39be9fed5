// Of bfloat16 weights on the tensor cores, with x rounded to bfloat16; of float32 and float16 ones
// by fused additions.
//
// A block takes a few tiles of outputs and up to 64 rows, its eight warps an eighth of the inputs
// each; then the partial sums are added in order. So weights are read once for up to 64 rows. A
// norm costs no pass of its own: x is multiplied by the norm's weights as it is read, its squares
// are added up on the way, and the sums are divided at the end.
#include "cuda/ops/launch.h"
#include "cuda/ops/product.h"
#include "cuda/ops/product_integers.h"
#include "cuda/ops/product_tile.cuh"
#include "cuda/portable.cuh"

namespace forerun::cuda {
namespace {

// A warp's sums of its split.
template <int kTiles, int kRowTiles>
__device__ void SumSteps(const Matrix& matrix, const ProductTask& task, int first_row,
                         float (&sums)[kRowTiles][kTiles][4], float (&squares)[kRowTiles]) {
  const int num_steps = NumSteps(matrix.num_inputs);
  const InputReader reader(task, matrix.num_inputs);
  const uint4* tiles[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    // Past the last tile the last one once more, whose sums are not used.
    const int tile = min(TileOf<kTiles>(matrix, task.gated, i), matrix.num_tiles - 1);
    tiles[i] = static_cast<const uint4*>(matrix.tiles) + std::int64_t{tile} * num_steps * kWarpSize;
  }
  const Steps steps = StepsOf(num_steps, Warp());
#pragma unroll 2
  for (int step = steps.begin; step < steps.end; ++step) {
    uint4 weights[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) weights[i] = __ldcs(tiles[i] + step * kWarpSize + Lane());
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      unsigned inputs[2];
      reader.Load(first_row + n * kRowsPerTile, step, squares[n], inputs);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const unsigned words[4] = {weights[i].x, weights[i].y, weights[i].z, weights[i].w};
        MultiplyAdd(sums[n][i], words, inputs);
      }
    }
  }
}

template <int kTiles, int kRowTiles>
__global__ void __launch_bounds__(kProductThreads, 2)
    MultiplyBFloat16(const __grid_constant__ Matrix matrix,
                     const __grid_constant__ ProductTask task) {
  const int first_row = static_cast<int>(blockIdx.y) * kRowTiles * kRowsPerTile;
  float sums[kRowTiles][kTiles][4] = {};
  float squares[kRowTiles] = {};
  SumSteps<kTiles, kRowTiles>(matrix, task, first_row, sums, squares);
  FinishBlock<kTiles, kRowTiles>(matrix, task, first_row, sums, squares);
}

// Lanes of a warp take sixteen outputs and every second input each.
template <typename T, int kRows>
__global__ void __launch_bounds__(kProductThreads, kRows > 8 ? 1 : 2)
    MultiplyFloat32(const __grid_constant__ Matrix matrix,
                    const __grid_constant__ ProductTask task) {
  const int num_tiles = task.gated ? 2 : 1;
  __shared__ Partials<kRows> partials;
  const int first_row = static_cast<int>(blockIdx.y) * kRows;
  const int output = Lane() % kTileOutputs, first_input = Lane() / kTileOutputs;
  const int num_steps = NumSteps(matrix.num_inputs);
  const Steps steps = StepsOf(num_steps, Warp());
  const int end = min(steps.end * kStepInputs, matrix.num_inputs);
  float gates[kElements<kRows>] = {};
  for (int i = 0; i < num_tiles; ++i) {
    const int tile = TileOf</*kTiles=*/1>(matrix, task.gated, i);
    const T* weights = static_cast<const T*>(matrix.tiles) +
                       std::int64_t{tile} * num_steps * kStepInputs * kTileOutputs + output;
    float sums[kRows] = {};
    float squares[kRows] = {};
    for (int k = steps.begin * kStepInputs + first_input; k < end; k += 2) {
      const float weight = ToFloat(__ldcs(weights + k * kTileOutputs));
      const float norm = task.norm != nullptr ? task.norm[k] : 1.0f;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (first_row + r >= task.num_rows) break;
        const float x = task.x[(first_row + r) * task.x_stride + k];
        squares[r] = fmaf(x, x, squares[r]);
        sums[r] = fmaf(weight, x * norm, sums[r]);
      }
    }
    if (i > 0) __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = sums[r] + __shfl_xor_sync(kFullWarp, sums[r], kTileOutputs);
      const float square = squares[r] + __shfl_xor_sync(kFullWarp, squares[r], kTileOutputs);
      if (first_input == 0) partials.sums[Warp()][output][r] = sum;
      if (Lane() == 0) partials.squares[Warp()][r] = square;
    }
    __syncthreads();
    FinishTile<kRows>(partials, matrix, task, {first_row, i, tile}, gates);
  }
}

template <int kTiles, int kRowTiles>
cudaError_t RunBFloat16(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  const dim3 grid(NumTileBlocks<kTiles>(matrix, task.gated),
                  NumBlocks(task.num_rows, kRowTiles * kRowsPerTile));
  return Run({grid, kProductThreads, stream}, MultiplyBFloat16<kTiles, kRowTiles>, matrix, task);
}

template <typename T>
cudaError_t RunFloat32(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  const unsigned tiles = NumTileBlocks<1>(matrix, task.gated);
  if (task.num_rows <= 8) {
    return Run({dim3(tiles), kProductThreads, stream}, MultiplyFloat32<T, 8>, matrix, task);
  }
  return Run({dim3(tiles, NumBlocks(task.num_rows, 32)), kProductThreads, stream},
             MultiplyFloat32<T, 32>, matrix, task);
}

}  // namespace

bool CanBeGated(const Matrix& matrix) {
  return matrix.num_parts == 2 && matrix.parts[0].num_outputs == matrix.parts[1].num_outputs;
}

cudaError_t Multiply(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  if (task.num_rows == 0) return cudaSuccess;
  if (HasIntegers(matrix.format)) return MultiplyIntegers(matrix, task, stream);
  if (matrix.format == WeightFormat::kFloat32) {
    return matrix.stored == DType::kFloat16 ? RunFloat32<__half>(matrix, task, stream)
                                            : RunFloat32<float>(matrix, task, stream);
  }
  // With more rows more tiles share the rows that a block reads.
  if (task.num_rows > 32) return RunBFloat16<2, 8>(matrix, task, stream);
  if (task.num_rows > 16) return RunBFloat16<2, 4>(matrix, task, stream);
  if (task.num_rows > 8) {
    return task.gated ? RunBFloat16<2, 2>(matrix, task, stream)
                      : RunBFloat16<1, 2>(matrix, task, stream);
  }
  return task.gated ? RunBFloat16<2, 1>(matrix, task, stream)
                    : RunBFloat16<1, 1>(matrix, task, stream);
}

}  // namespace forerun::cuda
