// What the kernels of products share: eight warps, each with an eighth of the inputs, whose partial
// sums are added in order.
#ifndef FORERUN_CUDA_OPS_PRODUCT_TILE_CUH_
#define FORERUN_CUDA_OPS_PRODUCT_TILE_CUH_

#include "cuda/ops/activation.cuh"
#include "cuda/ops/product.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {

inline constexpr int kProductThreads = kNumSplits * kWarpSize;
inline constexpr int kRowsPerTile = 8;  // of MultiplyAdd

__device__ inline int Thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int Lane() { return Thread() % kWarpSize; }
__device__ inline int Warp() { return Thread() / kWarpSize; }

// The steps of a split, or its units.
struct Steps {
  int begin;
  int end;
};
__device__ inline Steps StepsOf(int num_steps, int split) {
  return {num_steps * split / kNumSplits, num_steps * (split + 1) / kNumSplits};
}

// The tiles of a block: consecutive ones, or, gated, a tile of gates and that of what they gate.
template <int kTiles>
__device__ int TileOf(const Matrix& matrix, bool gated, int i) {
  const int block = static_cast<int>(blockIdx.x);
  if (!gated) return block * kTiles + i;
  return i == 0 ? block : matrix.parts[1].first_tile + block;
}
// Blocks that take all tiles so.
template <int kTiles>
unsigned NumTileBlocks(const Matrix& matrix, bool gated) {
  if (gated) return static_cast<unsigned>(matrix.parts[1].first_tile);
  return static_cast<unsigned>((matrix.num_tiles + kTiles - 1) / kTiles);
}

// The number of a tile's output in the whole matrix; -1: there is none.
__device__ inline int OutputOf(const Matrix& matrix, int tile, int row) {
  int part = 0;
  while (part + 1 < matrix.num_parts && tile >= matrix.parts[part + 1].first_tile) ++part;
  const int i = (tile - matrix.parts[part].first_tile) * kTileOutputs + row;
  return tile < matrix.num_tiles && i < matrix.parts[part].num_outputs
             ? matrix.parts[part].first_output + i
             : -1;
}

// What the warps add up together, for kRows rows.
template <int kRows>
struct Partials {
  float sums[kNumSplits][kTileOutputs][kRows + 1];
  float squares[kNumSplits][kRows];
};

// The elements that a thread of the block finishes, of [kTileOutputs, kRows]: outputs first, so
// that neighbours write neighbouring floats.
template <int kRows>
inline constexpr int kElements = (kTileOutputs * kRows + kProductThreads - 1) / kProductThreads;

// What a norm multiplies by, from the sum of a row's squares.
__device__ inline float InverseNorm(float squares, int num_inputs, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(num_inputs) + eps);
}

// Of the four lanes that have the inputs of a row.
__device__ inline float SumOfQuad(float squares) {
  squares += __shfl_xor_sync(kFullWarp, squares, 1);
  squares += __shfl_xor_sync(kFullWarp, squares, 2);
  return squares;
}

// A sum of all splits, divided by the norm where there is one.
template <int kRows>
__device__ float SumOf(const Partials<kRows>& partials, const Matrix& matrix,
                       const ProductTask& task, int output, int row) {
  float sum = 0.0f;
#pragma unroll
  for (int split = 0; split < kNumSplits; ++split) sum += partials.sums[split][output][row];
  if (task.norm == nullptr) return sum;
  float squares = 0.0f;
#pragma unroll
  for (int split = 0; split < kNumSplits; ++split) squares += partials.squares[split][row];
  return sum * InverseNorm(squares, matrix.num_inputs, task.eps);
}

// A tile of a block, the block's tile number i; the block's rows count from first_row.
struct BlockTile {
  int first_row;
  int i;
  int tile;
};

// Adds the partial sums of a tile and writes its outputs; of gates, keeps them.
template <int kRows>
__device__ void FinishTile(const Partials<kRows>& partials, const Matrix& matrix,
                           const ProductTask& task, BlockTile own,
                           float (&gates)[kElements<kRows>]) {
#pragma unroll
  for (int e = 0; e < kElements<kRows>; ++e) {
    const int element = e * kProductThreads + Thread();
    const int row = element / kTileOutputs, in_tile = element % kTileOutputs;
    const int output = OutputOf(matrix, own.tile, in_tile);
    if (row >= kRows || own.first_row + row >= task.num_rows || output < 0) continue;
    float sum = SumOf(partials, matrix, task, in_tile, row);
    if (task.bias != nullptr) sum += task.bias[output];
    float* y = task.y + (own.first_row + row) * task.y_stride;
    if (!task.gated) {
      y[output] = task.accumulate ? sum + y[output] : sum;
    } else if (own.i == 0) {
      gates[e] = sum;
    } else {
      y[output - matrix.parts[1].first_output] = Activated(task.activation, gates[e]) * sum;
    }
  }
}

__device__ inline unsigned RoundedPair(float2 pair) {
  const __nv_bfloat162 rounded = __floats2bfloat162_rn(pair.x, pair.y);
  return static_cast<unsigned>(__bfloat16_as_ushort(rounded.x)) |
         static_cast<unsigned>(__bfloat16_as_ushort(rounded.y)) << 16;
}

// Reads x as MultiplyAdd takes it.
class InputReader {
 public:
  __device__ InputReader(const ProductTask& task, int num_inputs)
      : task_(task),
        num_inputs_(num_inputs),
        is_even_(num_inputs % 2 == 0 && task.x_stride % 2 == 0 &&
                 reinterpret_cast<std::uintptr_t>(task.x) % sizeof(float2) == 0) {}

  // A lane's inputs of a step, of its row of the eight from first_row on; 0 past the last one. With
  // a norm, adds up their squares.
  __device__ void Load(int first_row, int step, float& squares, unsigned (&inputs)[2]) const {
    const int row = first_row + Lane() / 4;
    inputs[0] = inputs[1] = 0;
    if (row >= task_.num_rows) return;
    const float* x = task_.x + row * task_.x_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = step * kStepInputs + Lane() % 4 * 2 + 8 * half;
      float2 values = PairAt(x, first, is_even_);
      if (task_.norm != nullptr) {
        const float2 norm = PairAt(task_.norm, first, /*is_even=*/false);
        squares = fmaf(values.x, values.x, squares);
        squares = fmaf(values.y, values.y, squares);
        values.x *= norm.x;
        values.y *= norm.y;
      }
      inputs[half] = RoundedPair(values);
    }
  }

 private:
  // Elements i and i + 1, 0 past the last input; aligned where `is_even`.
  __device__ float2 PairAt(const float* values, int i, bool is_even) const {
    float2 pair = {0.0f, 0.0f};
    if (is_even) {
      if (i < num_inputs_) pair = *reinterpret_cast<const float2*>(values + i);
    } else {
      if (i < num_inputs_) pair.x = values[i];
      if (i + 1 < num_inputs_) pair.y = values[i + 1];
    }
    return pair;
  }

  const ProductTask& task_;
  int num_inputs_;
  bool is_even_;
};

// Adds up a block's sums and finishes its outputs.
template <int kTiles, int kRowTiles>
__device__ void FinishBlock(const Matrix& matrix, const ProductTask& task, int first_row,
                            const float (&sums)[kRowTiles][kTiles][4],
                            float (&squares)[kRowTiles]) {
  constexpr int kRows = kRowTiles * kRowsPerTile;
  __shared__ Partials<kRows> partials;
  const int group = Lane() / 4, pair = Lane() % 4 * 2;
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
    squares[n] = SumOfQuad(squares[n]);
    if (pair == 0) partials.squares[Warp()][n * kRowsPerTile + group] = squares[n];
  }
  float gates[kElements<kRows>] = {};
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    if (i > 0) __syncthreads();
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        partials.sums[Warp()][group + e / 2 * 8][n * kRowsPerTile + pair + e % 2] = sums[n][i][e];
      }
    }
    __syncthreads();
    FinishTile<kRows>(partials, matrix, task, {first_row, i, TileOf<kTiles>(matrix, task.gated, i)},
                      gates);
  }
}

inline unsigned NumBlocks(int count, int each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_PRODUCT_TILE_CUH_
