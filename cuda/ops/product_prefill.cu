// Of many rows and bfloat16 weights. A block multiplies 128 rows with eight tiles of outputs, so
// that weights are read once for 128 rows; x is rounded once for all blocks. Additions have the
// order of product.cu's: the same instructions over a split's steps, the splits after each other.
#include "cuda/ops/launch.h"
#include "cuda/ops/product_prefill.h"
#include "cuda/ops/product_tile.cuh"
#include "cuda/portable.cuh"

namespace forerun::cuda {
namespace {

constexpr int kBlockRows = 128;
constexpr int kBlockTiles = 8;
constexpr int kRowWarps = 4;   // side by side over the rows, two over the tiles
constexpr int kWarpTiles = 4;  // of outputs
constexpr int kWarpRowTiles = kBlockRows / kRowWarps / kRowsPerTile;
constexpr int kChunkSteps = 4;  // of x at a time in shared memory
constexpr int kChunkInputs = kChunkSteps * kStepInputs;
// Words of a row there: four more than it has, so that eight rows lie in different banks.
constexpr int kRowWords = kChunkInputs / 2 + 4;
constexpr int kLoads = kBlockRows * kChunkInputs / 8 / kThreads;  // of 16 bytes, by a thread

// Eight rows; a warp has the steps of a split.
__global__ void __launch_bounds__(kThreads)
    RoundEightRows(ProductTask task, int num_inputs, RoundedRows out) {
  __shared__ float partials[kNumSplits][kRowsPerTile];
  const RowReader reader(task, num_inputs);
  const int num_steps = NumSteps(num_inputs), group = Lane() / 4;
  const int first_row = static_cast<int>(blockIdx.x) * kRowsPerTile, row = first_row + group;
  auto* words =
      reinterpret_cast<unsigned*>(out.values) + std::int64_t{row} * num_steps * (kStepInputs / 2);
  float squares = 0.0f;
  const Steps steps = StepsOf(num_steps, Warp());
  for (int step = steps.begin; step < steps.end; ++step) {
    unsigned inputs[2];
    reader.Load(first_row, step, squares, inputs);
    if (row >= task.num_rows) continue;
    words[step * (kStepInputs / 2) + Lane() % 4] = inputs[0];
    words[step * (kStepInputs / 2) + Lane() % 4 + 4] = inputs[1];
  }
  if (task.norm == nullptr) return;
  squares = SumOfQuad(squares);
  if (Lane() % 4 == 0) partials[Warp()][group] = squares;
  __syncthreads();
  if (Thread() >= kRowsPerTile || first_row + Thread() >= task.num_rows) return;
  float sum = 0.0f;
  for (int split = 0; split < kNumSplits; ++split) sum += partials[split][Thread()];
  out.inverses[first_row + Thread()] = InverseNorm(sum, num_inputs, task.eps);
}

// A thread's part of a chunk of x: what it loads of one while another is multiplied.
class ChunkLoader {
 public:
  __device__ ChunkLoader(const RoundedRows& x, int num_rows, int num_steps)
      : x_(x.values), num_rows_(num_rows), num_steps_(num_steps) {}

  __device__ void Load(int first_row, int first_step) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int load = i * kThreads + Thread(), in_row = load % (kChunkInputs / 8);
      const int row = first_row + load / (kChunkInputs / 8);
      loaded_[i] = {0, 0, 0, 0};
      // Two loads are a step.
      if (row < num_rows_ && first_step + in_row / 2 < num_steps_) {
        const auto* own = x_ + std::int64_t{row} * num_steps_ * kStepInputs;
        loaded_[i] = reinterpret_cast<const uint4*>(own + first_step * kStepInputs)[in_row];
      }
    }
  }
  __device__ void Store(unsigned (&chunk)[kBlockRows][kRowWords]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int load = i * kThreads + Thread();
      unsigned* words = &chunk[load / (kChunkInputs / 8)][load % (kChunkInputs / 8) * 4];
      *reinterpret_cast<uint4*>(words) = loaded_[i];
    }
  }

 private:
  const std::uint16_t* x_;
  int num_rows_, num_steps_;
  uint4 loaded_[kLoads];
};

// A warp's sums: of the split so far, and of the splits before.
struct WarpSums {
  float split[kWarpTiles][kWarpRowTiles][4] = {};
  float total[kWarpTiles][kWarpRowTiles][4] = {};

  __device__ void EndSplit() {
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) {
#pragma unroll
      for (int n = 0; n < kWarpRowTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          total[i][n][e] += split[i][n][e];
          split[i][n][e] = 0.0f;
        }
      }
    }
  }
};

// A warp's tiles of outputs: consecutive ones, or, gated, two tiles of gates and what they gate.
template <bool kGated>
__device__ int WarpTile(const Matrix& matrix, int i) {
  const int half = Warp() / kRowWarps, block = static_cast<int>(blockIdx.x);
  if constexpr (!kGated) return block * kBlockTiles + half * kWarpTiles + i;
  const int tile = block * kBlockTiles / 2 + half * 2 + i % 2;
  // Past the last gates there is none.
  if (tile >= matrix.parts[1].first_tile) return matrix.num_tiles;
  return i < 2 ? tile : matrix.parts[1].first_tile + tile;
}

// Writes a warp's outputs.
template <bool kGated>
__device__ void Finish(const Matrix& matrix, const ProductTask& task, const RoundedRows& x,
                       int warp_row, const WarpSums& sums) {
  const int pair = Lane() % 4 * 2;
  const auto value = [&](int i, int n, int e, int row, int output) {
    float sum = sums.total[i][n][e];
    if (task.norm != nullptr) sum *= x.inverses[row];
    return task.bias != nullptr ? sum + task.bias[output] : sum;
  };
#pragma unroll
  for (int i = 0; i < (kGated ? kWarpTiles / 2 : kWarpTiles); ++i) {
    const int tile = WarpTile<kGated>(matrix, i);
#pragma unroll
    for (int n = 0; n < kWarpRowTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_row + n * kRowsPerTile + pair + e % 2;
        const int in_tile = Lane() / 4 + e / 2 * 8;
        const int output = OutputOf(matrix, tile, in_tile);
        if (row >= task.num_rows || output < 0) continue;
        float* y = task.y + row * task.y_stride;
        const float sum = value(i, n, e, row, output);
        if constexpr (kGated) {
          const int gated = OutputOf(matrix, WarpTile<kGated>(matrix, i + 2), in_tile);
          y[output] = Activated(task.activation, sum) * value(i + 2, n, e, row, gated);
        } else {
          y[output] = task.accumulate ? sum + y[output] : sum;
        }
      }
    }
  }
}

template <bool kGated>
__global__ void __launch_bounds__(kThreads)
    MultiplyManyRows(Matrix matrix, ProductTask task, RoundedRows x) {
  __shared__ __align__(16) unsigned chunks[2][kBlockRows][kRowWords];
  const int num_steps = NumSteps(matrix.num_inputs);
  const int block_row = static_cast<int>(blockIdx.y) * kBlockRows;
  const int in_block = Warp() % kRowWarps * (kBlockRows / kRowWarps);
  // A warp without rows takes part in the loads alone.
  const bool has_rows = block_row + in_block < task.num_rows;
  const uint4* tiles[kWarpTiles];
#pragma unroll
  for (int i = 0; i < kWarpTiles; ++i) {
    // Past the last tile the last one once more, whose sums are not used.
    const int tile = min(WarpTile<kGated>(matrix, i), matrix.num_tiles - 1);
    tiles[i] = static_cast<const uint4*>(matrix.tiles) +
               std::int64_t{tile} * num_steps * kWarpSize + Lane();
  }
  WarpSums sums;
  int split = 0;
  ChunkLoader loader(x, task.num_rows, num_steps);
  loader.Load(block_row, /*first_step=*/0);
  for (int first = 0; first < num_steps; first += kChunkSteps) {
    auto& chunk = chunks[first / kChunkSteps % 2];
    loader.Store(chunk);
    __syncthreads();
    if (first + kChunkSteps < num_steps) loader.Load(block_row, first + kChunkSteps);
    for (int step = first; has_rows && step < min(first + kChunkSteps, num_steps); ++step) {
      for (; step == StepsOf(num_steps, split).end; ++split) sums.EndSplit();
      const int word = (step - first) * (kStepInputs / 2) + Lane() % 4;
      unsigned inputs[kWarpRowTiles][2];
#pragma unroll
      for (int n = 0; n < kWarpRowTiles; ++n) {
        const unsigned* row = chunk[in_block + n * kRowsPerTile + Lane() / 4];
        inputs[n][0] = row[word];
        inputs[n][1] = row[word + 4];
      }
#pragma unroll
      for (int i = 0; i < kWarpTiles; ++i) {
        const uint4 weights = tiles[i][step * kWarpSize];
        const unsigned words[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
        for (int n = 0; n < kWarpRowTiles; ++n) MultiplyAdd(sums.split[i][n], words, inputs[n]);
      }
    }
  }
  for (; split < kNumSplits; ++split) sums.EndSplit();
  if (has_rows) Finish<kGated>(matrix, task, x, block_row + in_block, sums);
}

std::size_t ValueBytes(int num_rows, int num_inputs) {
  const std::size_t count = static_cast<std::size_t>(num_rows) * NumSteps(num_inputs) * kStepInputs;
  return count * sizeof(std::uint16_t);
}

}  // namespace

std::size_t RoundedBytes(int num_rows, int num_inputs) {
  return ValueBytes(num_rows, num_inputs) + sizeof(float) * num_rows;
}

RoundedRows RoundedRowsIn(void* memory, int num_rows, int num_inputs) {
  auto* bytes = static_cast<std::byte*>(memory);
  return {reinterpret_cast<std::uint16_t*>(bytes),
          reinterpret_cast<float*>(bytes + ValueBytes(num_rows, num_inputs))};
}

bool IsPrefill(const Matrix& matrix, int num_rows) {
  return matrix.format == WeightFormat::kBFloat16 && num_rows > kMaxRowsAtOnce;
}

cudaError_t RoundRows(const ProductTask& task, int num_inputs, const RoundedRows& out,
                      cudaStream_t stream) {
  return Run({dim3(NumBlocks(task.num_rows, kRowsPerTile)), kThreads, stream}, RoundEightRows, task,
             num_inputs, out);
}

cudaError_t MultiplyPrefill(const Matrix& matrix, const ProductTask& task, const RoundedRows& x,
                            cudaStream_t stream) {
  const unsigned rows = NumBlocks(task.num_rows, kBlockRows);
  if (task.gated) {
    const unsigned tiles = NumBlocks(matrix.parts[1].first_tile, kBlockTiles / 2);
    return Run({dim3(tiles, rows), kThreads, stream}, MultiplyManyRows<true>, matrix, task, x);
  }
  return Run({dim3(NumBlocks(matrix.num_tiles, kBlockTiles), rows), kThreads, stream},
             MultiplyManyRows<false>, matrix, task, x);
}

}  // namespace forerun::cuda
