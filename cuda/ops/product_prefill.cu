// Of many rows and bfloat16 weights. A block multiplies 128 rows with eight tiles of outputs, so
// that weights are read once for 128 rows; x is rounded once for all blocks. What a block reads of
// both goes through shared memory, a chunk of inputs while the one before is multiplied. Additions
// have the order of product.cu's: the same instructions over a split's steps, the splits after each
// other.
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
constexpr int kChunkSteps = 4;  // at a time in shared memory
constexpr int kChunkInputs = kChunkSteps * kStepInputs;
// Words of a row there: four more than it has, so that eight rows lie in different banks.
constexpr int kRowWords = kChunkInputs / 2 + 4;
// Of 16 bytes, by a thread.
constexpr int kLoads = kBlockRows * kChunkInputs / 8 / kProductThreads;
constexpr int kWeightLoads = kBlockTiles * kChunkSteps * kWarpSize / kProductThreads;

struct Chunk {
  unsigned x[kBlockRows][kRowWords];
  uint4 weights[kBlockTiles][kChunkSteps][kWarpSize];
};

// Eight rows; a warp has the steps of a split.
__global__ void __launch_bounds__(kProductThreads)
    RoundEightRows(const __grid_constant__ ProductTask task, int num_inputs, RoundedRows out) {
  __shared__ float partials[kNumSplits][kRowsPerTile];
  const InputReader reader(task, num_inputs);
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

// The block's tiles of outputs: consecutive ones, or, gated, two of gates and what they gate, and
// the same again.
template <bool kGated>
__device__ int TileInBlock(const Matrix& matrix, int in_block) {
  const int block = static_cast<int>(blockIdx.y);
  if constexpr (!kGated) return block * kBlockTiles + in_block;
  const int half = in_block / kWarpTiles, i = in_block % kWarpTiles;
  const int tile = block * kBlockTiles / 2 + half * 2 + i % 2;
  // Past the last gates there is none.
  if (tile >= matrix.parts[1].first_tile) return matrix.num_tiles;
  return i < 2 ? tile : matrix.parts[1].first_tile + tile;
}

// A thread's part of a chunk: what it loads of one while another is multiplied.
template <bool kGated>
class ChunkLoader {
 public:
  __device__ ChunkLoader(const Matrix& matrix, const RoundedRows& x, int first_row, int num_rows)
      : x_(x.values),
        first_row_(first_row),
        num_rows_(num_rows),
        num_steps_(NumSteps(matrix.num_inputs)) {
#pragma unroll
    for (int i = 0; i < kWeightLoads; ++i) {
      // Past the last tile the last one once more, whose sums are not used.
      const int tile = min(TileInBlock<kGated>(matrix, TileStepOf(i).tile), matrix.num_tiles - 1);
      tiles_[i] = static_cast<const uint4*>(matrix.tiles) +
                  std::int64_t{tile} * num_steps_ * kWarpSize + Lane();
    }
  }

  __device__ void Load(int first_step) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int load = i * kProductThreads + Thread(), in_row = load % (kChunkInputs / 8);
      const int row = first_row_ + load / (kChunkInputs / 8);
      x_loaded_[i] = {0, 0, 0, 0};
      // Two loads are a step.
      if (row < num_rows_ && first_step + in_row / 2 < num_steps_) {
        const auto* own = x_ + std::int64_t{row} * num_steps_ * kStepInputs;
        x_loaded_[i] = reinterpret_cast<const uint4*>(own + first_step * kStepInputs)[in_row];
      }
    }
#pragma unroll
    for (int i = 0; i < kWeightLoads; ++i) {
      const int step = first_step + TileStepOf(i).step;
      if (step < num_steps_) weights_loaded_[i] = tiles_[i][step * kWarpSize];
    }
  }
  __device__ void Store(Chunk& chunk) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int load = i * kProductThreads + Thread();
      unsigned* words = &chunk.x[load / (kChunkInputs / 8)][load % (kChunkInputs / 8) * 4];
      *reinterpret_cast<uint4*>(words) = x_loaded_[i];
    }
#pragma unroll
    for (int i = 0; i < kWeightLoads; ++i) {
      chunk.weights[TileStepOf(i).tile][TileStepOf(i).step][Lane()] = weights_loaded_[i];
    }
  }

 private:
  struct TileStep {
    int tile, step;
  };
  // Of a load of weights: a warp takes a step of a tile.
  __device__ static TileStep TileStepOf(int i) {
    const int load = i * kNumSplits + Warp();
    return {load / kChunkSteps, load % kChunkSteps};
  }

  const std::uint16_t* x_;
  int first_row_, num_rows_, num_steps_;
  const uint4* tiles_[kWeightLoads];
  uint4 x_loaded_[kLoads];
  uint4 weights_loaded_[kWeightLoads] = {};
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

// Writes a warp's outputs.
template <bool kGated>
__device__ void Finish(const Matrix& matrix, const ProductTask& task, const RoundedRows& x,
                       int warp_row, const WarpSums& sums) {
  const int pair = Lane() % 4 * 2, first_tile = Warp() / kRowWarps * kWarpTiles;
  const auto value = [&](int i, int n, int e, int row, int output) {
    float sum = sums.total[i][n][e];
    if (task.norm != nullptr) sum *= x.inverses[row];
    return task.bias != nullptr ? sum + task.bias[output] : sum;
  };
#pragma unroll
  for (int i = 0; i < (kGated ? kWarpTiles / 2 : kWarpTiles); ++i) {
    const int tile = TileInBlock<kGated>(matrix, first_tile + i);
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
          const int gated =
              OutputOf(matrix, TileInBlock<kGated>(matrix, first_tile + i + 2), in_tile);
          y[output] = Activated(task.activation, sum) * value(i + 2, n, e, row, gated);
        } else {
          y[output] = task.accumulate ? sum + y[output] : sum;
        }
      }
    }
  }
}

// Blocks with the same weights come after each other, so that these are read from memory once.
template <bool kGated>
__global__ void __launch_bounds__(kProductThreads)
    MultiplyManyRows(const __grid_constant__ Matrix matrix,
                     const __grid_constant__ ProductTask task, RoundedRows x) {
  auto* const chunks = static_cast<Chunk*>(DynamicShared());
  const int num_steps = NumSteps(matrix.num_inputs);
  const int block_row = static_cast<int>(blockIdx.x) * kBlockRows;
  const int in_block = Warp() % kRowWarps * (kBlockRows / kRowWarps);
  const int first_tile = Warp() / kRowWarps * kWarpTiles;
  // A warp without rows takes part in the loads alone.
  const bool has_rows = block_row + in_block < task.num_rows;
  WarpSums sums;
  int split = 0;
  ChunkLoader<kGated> loader(matrix, x, block_row, task.num_rows);
  loader.Load(/*first_step=*/0);
  for (int first = 0; first < num_steps; first += kChunkSteps) {
    Chunk& chunk = chunks[first / kChunkSteps % 2];
    loader.Store(chunk);
    __syncthreads();
    if (first + kChunkSteps < num_steps) loader.Load(first + kChunkSteps);
    for (int step = first; has_rows && step < min(first + kChunkSteps, num_steps); ++step) {
      for (; step == StepsOf(num_steps, split).end; ++split) sums.EndSplit();
      const int word = (step - first) * (kStepInputs / 2) + Lane() % 4;
      unsigned inputs[kWarpRowTiles][2];
#pragma unroll
      for (int n = 0; n < kWarpRowTiles; ++n) {
        const unsigned* row = chunk.x[in_block + n * kRowsPerTile + Lane() / 4];
        inputs[n][0] = row[word];
        inputs[n][1] = row[word + 4];
      }
#pragma unroll
      for (int i = 0; i < kWarpTiles; ++i) {
        const uint4 weights = chunk.weights[first_tile + i][step - first][Lane()];
        const unsigned words[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
        for (int n = 0; n < kWarpRowTiles; ++n) MultiplyAdd(sums.split[i][n], words, inputs[n]);
      }
    }
  }
  for (; split < kNumSplits; ++split) sums.EndSplit();
  if (has_rows) Finish<kGated>(matrix, task, x, block_row + in_block, sums);
}

template <bool kGated>
cudaError_t RunManyRows(const Matrix& matrix, const ProductTask& task, const RoundedRows& x,
                        cudaStream_t stream) {
  const int num_tiles = kGated ? matrix.parts[1].first_tile : matrix.num_tiles;
  const dim3 grid(NumBlocks(task.num_rows, kBlockRows),
                  NumBlocks(num_tiles, kGated ? kBlockTiles / 2 : kBlockTiles));
  const Launch launch = {grid, kProductThreads, stream, /*shared_bytes=*/2 * sizeof(Chunk)};
  return RunShared<MultiplyManyRows<kGated>>(launch, matrix, task, x);
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
  return Run({dim3(NumBlocks(task.num_rows, kRowsPerTile)), kProductThreads, stream},
             RoundEightRows, task, num_inputs, out);
}

cudaError_t MultiplyPrefill(const Matrix& matrix, const ProductTask& task, const RoundedRows& x,
                            cudaStream_t stream) {
  return task.gated ? RunManyRows<true>(matrix, task, x, stream)
                    : RunManyRows<false>(matrix, task, x, stream);
}

}  // namespace forerun::cuda
