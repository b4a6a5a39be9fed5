// Products with packed weights.
//
// A lane owns one output and walks the inputs in order with one accumulator, so no output depends
// on how rows and tiles are grouped. What is grouped, and how, is only a matter of speed: a step
// multiplies M rows with T tiles of sixteen outputs, as many as registers hold.
#ifndef FORERUN_CPP_OPS_CPU_MATMUL_KERNEL_H_
#define FORERUN_CPP_OPS_CPU_MATMUL_KERNEL_H_

#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/cpu/matmul_weights.h"
#include "cpp/util/simd/vec_math.h"

namespace forerun::FORERUN_ISA {

// One call's view of the task: M rows from `row`, T tiles from `tile`.
struct TilePosition {
  int row;
  int tile;
};

// Out of line: it runs once for hundreds of steps, and many products call it.
[[gnu::noinline]] inline void FinishOutput(const MatMulTask& task, int row, int tile,
                                           const float* products) {
  const int begin = tile * kLanes;
  const int count = task.num_outputs - begin;
  float* y = task.y + row * task.y_stride + begin;
  V16 sum = Load(products);
  if (count >= kLanes) {
    if (task.bias != nullptr) sum = Add(sum, Load(task.bias + begin));
    if (task.accumulate) sum = Add(sum, Load(y));
    Store(y, sum);
  } else {
    if (task.bias != nullptr) sum = Add(sum, LoadPartial(task.bias + begin, count));
    if (task.accumulate) sum = Add(sum, LoadPartial(y, count));
    StorePartial(y, sum, count);
  }
}

// Bytes between what is multiplied and what is fetched, over all tiles taken at once. From far
// ahead a line comes to the second-level cache, and from near ahead to the first, which can wait
// for only a few lines at a time. Those that are near go first: they are needed sooner. Measured on
// a Xeon of the fifth generation, with 1 to 8 rows: without the far ones int8 takes 1.14 times as
// long, and half or twice as far is no better. Half or twice as near was slower on Zen 3, where the
// far ones were not measured.
inline constexpr int kFarAhead = 8192;
inline constexpr int kNearAhead = 2048;
// What two blocks of rows fetch for the next group of tiles goes to the first level up to this
// size: more would push out what they multiply. With more blocks, less of their time is a wait.
inline constexpr int kMostNear = 16384;

// What to prefetch while a product runs: for every step, as many bytes as a tile has for it at
// `from`, at `from` + tile_step and so on; then `from` moves on by `step`.
struct Prefetch {
  const char* from;
  std::int64_t step;
  std::int64_t tile_step;
  bool is_far;  // the step's own tiles are fetched as well, near ahead
};

template <int kBytes>
FORERUN_INLINE void PrefetchNear(const void* from) {
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}
template <int kBytes>
FORERUN_INLINE void PrefetchFar(const void* from) {
  constexpr int kRead = 0, kSecondLevel = 2;
  for (int i = 0; i < kBytes; i += 64) {
    __builtin_prefetch(static_cast<const char*>(from) + i, kRead, kSecondLevel);
  }
}

template <class W, int M, int T>
void MultiplyTiles(const MatMulTask& task, TilePosition position, Prefetch prefetch) {
  constexpr TileStep kStep = StepOf(W::kFormat);
  constexpr int kStepWeights = kStep.num_bytes / static_cast<int>(sizeof(typename W::Weight));
  const int num_steps = (task.num_inputs + kStep.num_inputs - 1) / kStep.num_inputs;
  const std::int64_t tile_stride = std::int64_t{num_steps} * kStepWeights;
  const auto* w =
      static_cast<const typename W::Weight*>(task.weights) + position.tile * tile_stride;
  const auto* x = static_cast<const typename W::Input*>(task.x) + position.row * task.x_stride;

  Accumulators<M, T> sum;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sum[m][t] = Zero();
  }
  const int num_whole_steps = W::kPaddedInput ? num_steps : task.num_inputs / kStep.num_inputs;
  for (int step = 0; step < num_whole_steps; ++step) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const char* from = prefetch.from + t * prefetch.tile_step;
      if (prefetch.is_far) {
        const auto* own = reinterpret_cast<const char*>(w + t * tile_stride);
        PrefetchNear<kStep.num_bytes>(own + kNearAhead / T);
        PrefetchFar<kStep.num_bytes>(from);
      } else {
        PrefetchNear<kStep.num_bytes>(from);
      }
    }
    prefetch.from += prefetch.step;
    W::template Step<M, T>(w, tile_stride, x, task.x_stride, sum);
    w += kStepWeights;
    x += W::kStepInputs;
  }
  if constexpr (!W::kPaddedInput) {
    if (task.num_inputs % 2 != 0) W::template HalfStep<M, T>(w, tile_stride, x, task.x_stride, sum);
  }
  // By way of memory, so that the sums themselves stay in registers.
  alignas(64) float products[M][T][kLanes];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) Store(products[m][t], sum[m][t]);
  }
  for (int m = 0; m < M; ++m) {
    for (int t = 0; t < T; ++t)
      FinishOutput(task, position.row + m, position.tile + t, products[m][t]);
  }
}

// Tiles by as many as M rows, or one row more, take at once, or one by one. (Blocks of rows differ
// by one row and share their groups of tiles.)
template <class W, int M>
FORERUN_INLINE void MultiplyRows(const MatMulTask& task, TilePosition position, int tiles,
                                 Prefetch prefetch) {
  constexpr int kMost = W::TilesAtOnce(M), kFewer = W::TilesAtOnce(M + 1);
  if (tiles == kMost) return MultiplyTiles<W, M, kMost>(task, position, prefetch);
  if (tiles == kFewer) return MultiplyTiles<W, M, kFewer>(task, position, prefetch);
  for (int i = 0; i < tiles; ++i, ++position.tile) MultiplyTiles<W, M, 1>(task, position, prefetch);
}

template <class W, int M = W::kMaxRows>
FORERUN_INLINE void Multiply(const MatMulTask& task, TilePosition position, int rows, int tiles,
                             Prefetch prefetch) {
  if constexpr (M > 1) {
    if (rows < M) return Multiply<W, M - 1>(task, position, rows, tiles, prefetch);
  }
  MultiplyRows<W, M>(task, position, tiles, prefetch);
}

// Rows in blocks of nearly equal size. A single block streams its weights. Of several, a group of
// tiles stays in cache while every block meets it, and each block fetches its share of the next.
template <class W>
void MatMul(const MatMulTask& task) {
  const int num_blocks = (task.num_rows + W::kMaxRows - 1) / W::kMaxRows;
  const int most_rows = (task.num_rows + num_blocks - 1) / num_blocks;
  constexpr std::int64_t kStepBytes = StepOf(W::kFormat).num_bytes;
  constexpr int kInputs = StepOf(W::kFormat).num_inputs;
  const std::int64_t tile_bytes = (task.num_inputs + kInputs - 1) / kInputs * kStepBytes;
  int group = W::TilesAtOnce(most_rows);
  for (int tile = task.tile_begin; tile < task.tile_end; tile += group) {
    if (group > task.tile_end - tile) group = 1;
    const char* weights = static_cast<const char*>(task.weights) + tile * tile_bytes;
    Prefetch prefetch = {weights + kFarAhead / group, kStepBytes, tile_bytes, true};
    if (num_blocks > 1) {
      const bool is_far = num_blocks == 2 && group * tile_bytes > kMostNear;
      prefetch = {weights + group * tile_bytes, group * kStepBytes / num_blocks, kStepBytes,
                  is_far};
    }
    for (int block = 0; block < num_blocks; ++block) {
      const int row = task.num_rows * block / num_blocks;
      const int rows = task.num_rows * (block + 1) / num_blocks - row;
      Multiply<W>(task, {row, tile}, rows, group, prefetch);
      prefetch.from += group * tile_bytes / num_blocks;
    }
  }
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_MATMUL_KERNEL_H_
