// Of bfloat16 weights on the tensor cores, with x rounded to bfloat16; of float32 ones by fused
// additions.
//
// A block takes a few tiles of outputs and up to 64 rows, its eight warps an eighth of the inputs
// each; then the partial sums are added in order. So weights are read once for up to 64 rows. A
// norm costs no pass of its own: x is multiplied by the norm's weights as it is read, its squares
// are added up on the way, and the sums are divided at the end.
#include "cuda/ops/activation.cuh"
#include "cuda/ops/launch.h"
#include "cuda/ops/product.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {
namespace {

constexpr int kThreads = kNumSplits * kWarpSize;
constexpr int kRowsPerTile = 8;  // of MultiplyAdd

__device__ int Thread() { return static_cast<int>(threadIdx.x); }
__device__ int Lane() { return Thread() % kWarpSize; }
__device__ int Warp() { return Thread() / kWarpSize; }

// The steps of a split.
struct Steps {
  int begin;
  int end;
};
__device__ Steps StepsOf(const Matrix& matrix, int split) {
  const int num_steps = NumSteps(matrix.num_inputs);
  return {num_steps * split / kNumSplits, num_steps * (split + 1) / kNumSplits};
}

// The tiles of a block: consecutive ones, or, gated, a tile of gates and that of what they gate.
template <int kTiles, bool kGated>
__device__ int TileOf(const Matrix& matrix, int i) {
  const int block = static_cast<int>(blockIdx.x);
  if constexpr (kGated) return i == 0 ? block : matrix.parts[1].first_tile + block;
  return block * kTiles + i;
}

// The number of a tile's output in the whole matrix; -1: there is none.
__device__ int OutputOf(const Matrix& matrix, int tile, int row) {
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
inline constexpr int kElements = (kTileOutputs * kRows + kThreads - 1) / kThreads;

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
  return sum * (1.0f / sqrtf(squares / static_cast<float>(matrix.num_inputs) + task.eps));
}

// A tile of a block, the block's tile number i; the block's rows count from first_row.
struct BlockTile {
  int first_row;
  int i;
  int tile;
};

// Adds the partial sums of a tile and writes its outputs; of gates, keeps them.
template <int kRows, bool kGated>
__device__ void FinishTile(const Partials<kRows>& partials, const Matrix& matrix,
                           const ProductTask& task, BlockTile own,
                           float (&gates)[kElements<kRows>]) {
#pragma unroll
  for (int e = 0; e < kElements<kRows>; ++e) {
    const int element = e * kThreads + Thread();
    const int row = element / kTileOutputs, in_tile = element % kTileOutputs;
    const int output = OutputOf(matrix, own.tile, in_tile);
    if (row >= kRows || own.first_row + row >= task.num_rows || output < 0) continue;
    float sum = SumOf(partials, matrix, task, in_tile, row);
    if (task.bias != nullptr) sum += task.bias[output];
    float* y = task.y + (own.first_row + row) * task.y_stride;
    if constexpr (!kGated) {
      y[output] = task.accumulate ? sum + y[output] : sum;
    } else if (own.i == 0) {
      gates[e] = sum;
    } else {
      y[output - matrix.parts[1].first_output] = Activated(task.activation, gates[e]) * sum;
    }
  }
}

struct InputRow {
  const float* x;
  int num_inputs;
  bool is_even;  // pairs are aligned
};

// Inputs i and i + 1 of a row, 0 past its end.
__device__ float2 InputPair(const InputRow& row, int i) {
  float2 pair = {0.0f, 0.0f};
  if (row.is_even) {
    if (i < row.num_inputs) pair = *reinterpret_cast<const float2*>(row.x + i);
  } else {
    if (i < row.num_inputs) pair.x = row.x[i];
    if (i + 1 < row.num_inputs) pair.y = row.x[i + 1];
  }
  return pair;
}
__device__ float2 NormPair(const ProductTask& task, int i, int num_inputs) {
  return {i < num_inputs ? task.norm[i] : 0.0f, i + 1 < num_inputs ? task.norm[i + 1] : 0.0f};
}

__device__ unsigned RoundedPair(float2 pair) {
  const __nv_bfloat162 rounded = __floats2bfloat162_rn(pair.x, pair.y);
  return static_cast<unsigned>(__bfloat16_as_ushort(rounded.x)) |
         static_cast<unsigned>(__bfloat16_as_ushort(rounded.y)) << 16;
}

__device__ void AddSquares(float2 pair, float& sum) {
  sum = fmaf(pair.x, pair.x, sum);
  sum = fmaf(pair.y, pair.y, sum);
}

// A lane's inputs of a row and a step, as MultiplyAdd takes them; adds up their squares where there
// is a norm.
__device__ void LoadInputs(const ProductTask& task, const InputRow& row, int input, float& squares,
                           unsigned (&inputs)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int first = input + 8 * half;
    float2 values = InputPair(row, first);
    if (task.norm != nullptr) {
      const float2 norm = NormPair(task, first, row.num_inputs);
      AddSquares(values, squares);
      values.x *= norm.x;
      values.y *= norm.y;
    }
    inputs[half] = RoundedPair(values);
  }
}

// A warp's sums of its split.
template <int kTiles, int kRowTiles, bool kGated>
__device__ void SumSteps(const Matrix& matrix, const ProductTask& task, int first_row,
                         float (&sums)[kTiles][kRowTiles][4], float (&squares)[kRowTiles]) {
  const int group = Lane() / 4, pair = Lane() % 4 * 2;
  const int num_inputs = matrix.num_inputs, num_steps = NumSteps(num_inputs);
  const bool is_even = num_inputs % 2 == 0 && task.x_stride % 2 == 0 &&
                       reinterpret_cast<std::uintptr_t>(task.x) % sizeof(float2) == 0;
  const uint4* tiles[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    // Past the last tile the last one once more, whose sums are not used.
    const int tile = min(TileOf<kTiles, kGated>(matrix, i), matrix.num_tiles - 1);
    tiles[i] = static_cast<const uint4*>(matrix.tiles) + std::int64_t{tile} * num_steps * kWarpSize;
  }
  const Steps steps = StepsOf(matrix, Warp());
#pragma unroll 2
  for (int step = steps.begin; step < steps.end; ++step) {
    uint4 weights[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) weights[i] = __ldcs(tiles[i] + step * kWarpSize + Lane());
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      const int row = first_row + n * kRowsPerTile + group;
      unsigned inputs[2] = {0, 0};
      if (row < task.num_rows) {
        LoadInputs(task, {task.x + row * task.x_stride, num_inputs, is_even},
                   step * kStepInputs + pair, squares[n], inputs);
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const unsigned words[4] = {weights[i].x, weights[i].y, weights[i].z, weights[i].w};
        MultiplyAdd(sums[i][n], words, inputs);
      }
    }
  }
}

template <int kTiles, int kRowTiles, bool kGated>
__global__ void __launch_bounds__(kThreads) MultiplyBFloat16(Matrix matrix, ProductTask task) {
  constexpr int kRows = kRowTiles * kRowsPerTile;
  __shared__ Partials<kRows> partials;
  const int first_row = static_cast<int>(blockIdx.y) * kRows;
  const int group = Lane() / 4, pair = Lane() % 4 * 2;
  float sums[kTiles][kRowTiles][4] = {};
  float squares[kRowTiles] = {};
  SumSteps<kTiles, kRowTiles, kGated>(matrix, task, first_row, sums, squares);
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
    squares[n] += __shfl_xor_sync(kFullWarp, squares[n], 1);
    squares[n] += __shfl_xor_sync(kFullWarp, squares[n], 2);
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
        partials.sums[Warp()][group + e / 2 * 8][n * kRowsPerTile + pair + e % 2] = sums[i][n][e];
      }
    }
    __syncthreads();
    FinishTile<kRows, kGated>(partials, matrix, task,
                              {first_row, i, TileOf<kTiles, kGated>(matrix, i)}, gates);
  }
}

// Lanes of a warp take sixteen outputs and every second input each.
template <int kRows, bool kGated>
__global__ void __launch_bounds__(kThreads) MultiplyFloat32(Matrix matrix, ProductTask task) {
  constexpr int kTiles = kGated ? 2 : 1;
  __shared__ Partials<kRows> partials;
  const int first_row = static_cast<int>(blockIdx.y) * kRows;
  const int output = Lane() % kTileOutputs, first_input = Lane() / kTileOutputs;
  const int num_steps = NumSteps(matrix.num_inputs);
  const Steps steps = StepsOf(matrix, Warp());
  const int end = min(steps.end * kStepInputs, matrix.num_inputs);
  float gates[kElements<kRows>] = {};
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const int tile = TileOf<kTiles, kGated>(matrix, i);
    const float* weights = static_cast<const float*>(matrix.tiles) +
                           std::int64_t{tile} * num_steps * kStepInputs * kTileOutputs + output;
    float sums[kRows] = {};
    float squares[kRows] = {};
    for (int k = steps.begin * kStepInputs + first_input; k < end; k += 2) {
      const float weight = __ldcs(weights + k * kTileOutputs);
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
    FinishTile<kRows, kGated>(partials, matrix, task, {first_row, i, tile}, gates);
  }
}

unsigned NumBlocks(int count, int each) { return static_cast<unsigned>((count + each - 1) / each); }

template <int kTiles, int kRowTiles>
cudaError_t RunBFloat16(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  const unsigned rows = NumBlocks(task.num_rows, kRowTiles * kRowsPerTile);
  if (task.gated) {
    return Run({dim3(static_cast<unsigned>(matrix.parts[1].first_tile), rows), kThreads, stream},
               MultiplyBFloat16<2, kRowTiles, true>, matrix, task);
  }
  return Run({dim3(NumBlocks(matrix.num_tiles, kTiles), rows), kThreads, stream},
             MultiplyBFloat16<kTiles, kRowTiles, false>, matrix, task);
}

template <int kRows>
cudaError_t RunFloat32(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  const unsigned rows = NumBlocks(task.num_rows, kRows);
  if (task.gated) {
    return Run({dim3(static_cast<unsigned>(matrix.parts[1].first_tile), rows), kThreads, stream},
               MultiplyFloat32<kRows, true>, matrix, task);
  }
  return Run({dim3(static_cast<unsigned>(matrix.num_tiles), rows), kThreads, stream},
             MultiplyFloat32<kRows, false>, matrix, task);
}

}  // namespace

bool CanBeGated(const Matrix& matrix) {
  return matrix.num_parts == 2 && matrix.parts[0].num_outputs == matrix.parts[1].num_outputs;
}

cudaError_t Multiply(const Matrix& matrix, const ProductTask& task, cudaStream_t stream) {
  if (task.num_rows == 0) return cudaSuccess;
  if (matrix.format == WeightFormat::kFloat32) {
    if (task.num_rows <= 8) return RunFloat32<8>(matrix, task, stream);
    return RunFloat32<32>(matrix, task, stream);
  }
  // With more rows more tiles share the rows that a block reads.
  if (task.num_rows <= 8) return RunBFloat16<1, 1>(matrix, task, stream);
  if (task.num_rows <= 16) return RunBFloat16<1, 2>(matrix, task, stream);
  if (task.num_rows <= 32) return RunBFloat16<2, 4>(matrix, task, stream);
  return RunBFloat16<2, 8>(matrix, task, stream);
}

}  // namespace forerun::cuda
