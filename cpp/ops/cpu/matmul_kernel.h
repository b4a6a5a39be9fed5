// Products with packed weights.
//
// A lane owns one output and walks the inputs in order with one accumulator, so no output depends
// on how rows and tiles are grouped. What is grouped, and how, is only a matter of speed: a step
// multiplies M rows with T tiles of sixteen outputs, as many as registers hold.
#ifndef FORERUN_CPP_OPS_CPU_MATMUL_KERNEL_H_
#define FORERUN_CPP_OPS_CPU_MATMUL_KERNEL_H_

#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/cpu/vec_math.h"

namespace forerun::FORERUN_ISA {

template <int M, int T>
using Accumulators = V16[M][T];

// How weights meet activations. Step adds a pair of inputs, HalfStep only the first of them.
template <class W>
struct Widened {
  using Weight = typename W::Weight;
  using Input = float;
  static constexpr bool kPaddedInput = false;

  template <int M, int T>
  static FORERUN_INLINE void AddProducts(const V16 (&w)[T], const float* x, std::int64_t x_stride,
                                         Accumulators<M, T>& sum) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const V16 input = Set(x[m * x_stride]);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) sum[m][t] = Fma(w[t], input, sum[m][t]);
    }
  }

  template <int M, int T>
  static FORERUN_INLINE void HalfStep(const Weight* w, std::int64_t tile_stride, const float* x,
                                      std::int64_t x_stride, Accumulators<M, T>& sum) {
    V16 first[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) first[t] = W::First(w + t * tile_stride);
    AddProducts<M, T>(first, x, x_stride, sum);
  }

  template <int M, int T>
  static FORERUN_INLINE void Step(const Weight* w, std::int64_t tile_stride, const float* x,
                                  std::int64_t x_stride, Accumulators<M, T>& sum) {
    HalfStep<M, T>(w, tile_stride, x, x_stride, sum);
    V16 second[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) second[t] = W::Second(w + t * tile_stride);
    AddProducts<M, T>(second, x + 1, x_stride, sum);
  }
};

struct BFloat16Pairs {
  using Weight = std::uint16_t;
  static FORERUN_INLINE V16 First(const Weight* pair) { return LoadEven(pair); }
  static FORERUN_INLINE V16 Second(const Weight* pair) { return LoadOdd(pair); }
};
using BFloat16Weights = Widened<BFloat16Pairs>;

struct Float32Pairs {
  using Weight = float;
  static FORERUN_INLINE V16 First(const Weight* pair) { return Load(pair); }
  static FORERUN_INLINE V16 Second(const Weight* pair) { return Load(pair + kLanes); }
};
using Float32Weights = Widened<Float32Pairs>;

#if defined(FORERUN_HAS_BFLOAT16_DOT)
// Activations are bfloat16 pairs as well; the processor multiplies and adds a pair at once.
struct BFloat16Dot {
  using Weight = std::uint16_t;
  using Input = std::uint16_t;
  static constexpr bool kPaddedInput = true;

  template <int M, int T>
  static FORERUN_INLINE void Step(const Weight* w, std::int64_t tile_stride, const Input* x,
                                  std::int64_t x_stride, Accumulators<M, T>& sum) {
    Pairs weights[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) weights[t] = LoadPairs(w + t * tile_stride);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Pairs input = SetPair(x + m * x_stride);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) sum[m][t] = AddDots(weights[t], input, sum[m][t]);
    }
  }
};
#endif

// One call's view of the task: M rows from `row`, T tiles from `tile`.
struct Place {
  int row;
  int tile;
};

FORERUN_INLINE void FinishOutput(const MatMulTask& task, int row, int tile, V16 sum) {
  const int begin = tile * kLanes;
  float* y = task.y + row * task.y_stride + begin;
  const int count = task.num_outputs - begin;
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

// Where to prefetch while a product runs: `step` bytes for every pair of inputs.
struct Prefetch {
  const char* from;
  std::int64_t step;
};

template <class W, int M, int T>
void MultiplyTiles(const MatMulTask& task, Place place, Prefetch prefetch) {
  constexpr int kPairWeights = 2 * kLanes;
  constexpr int kPairLines = T * kPairWeights * static_cast<int>(sizeof(typename W::Weight)) / 64;
  const int num_pairs = (task.num_inputs + 1) / 2;
  const std::int64_t tile_stride = std::int64_t{num_pairs} * kPairWeights;
  const auto* w = static_cast<const typename W::Weight*>(task.weights) + place.tile * tile_stride;
  const auto* x = static_cast<const typename W::Input*>(task.x) + place.row * task.x_stride;

  Accumulators<M, T> sum;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sum[m][t] = Zero();
  }
  const int num_whole_pairs = W::kPaddedInput ? num_pairs : task.num_inputs / 2;
  for (int pair = 0; pair < num_whole_pairs; ++pair) {
#pragma GCC unroll 16
    for (int line = 0; line < kPairLines; ++line) __builtin_prefetch(prefetch.from + 64 * line);
    prefetch.from += prefetch.step;
    W::template Step<M, T>(w, tile_stride, x, task.x_stride, sum);
    w += kPairWeights;
    x += 2;
  }
  if constexpr (!W::kPaddedInput) {
    if (task.num_inputs % 2 != 0) W::template HalfStep<M, T>(w, tile_stride, x, task.x_stride, sum);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) FinishOutput(task, place.row + m, place.tile + t, sum[m][t]);
  }
}

// Tiles by as many as M rows, or one row more, take at once, or one by one. (Blocks of rows differ
// by one row and share their groups of tiles.)
template <class W, int M>
FORERUN_INLINE void MultiplyRows(const MatMulTask& task, Place place, int tiles,
                                 Prefetch prefetch) {
  constexpr int kMost = VectorsAtOnce(M), kFewer = VectorsAtOnce(M + 1);
  if (tiles == kMost) return MultiplyTiles<W, M, kMost>(task, place, prefetch);
  if (tiles == kFewer) return MultiplyTiles<W, M, kFewer>(task, place, prefetch);
  for (int i = 0; i < tiles; ++i, ++place.tile) MultiplyTiles<W, M, 1>(task, place, prefetch);
}

template <class W, int M = kMaxTileRows>
FORERUN_INLINE void Multiply(const MatMulTask& task, Place place, int rows, int tiles,
                             Prefetch prefetch) {
  if constexpr (M > 1) {
    if (rows < M) return Multiply<W, M - 1>(task, place, rows, tiles, prefetch);
  }
  MultiplyRows<W, M>(task, place, tiles, prefetch);
}

// Rows in blocks of nearly equal size; a group of tiles stays in cache while every block meets it,
// and each block fetches its share of the next group.
template <class W>
void MatMul(const MatMulTask& task) {
  const int num_blocks = (task.num_rows + kMaxTileRows - 1) / kMaxTileRows;
  const int most_rows = (task.num_rows + num_blocks - 1) / num_blocks;
  const int num_pairs = (task.num_inputs + 1) / 2;
  const std::int64_t pair_bytes = 2 * kLanes * sizeof(typename W::Weight);
  const auto* weights = static_cast<const char*>(task.weights);
  int group = VectorsAtOnce(most_rows);
  for (int tile = task.tile_begin; tile < task.tile_end; tile += group) {
    if (group > task.tile_end - tile) group = 1;
    const char* next = weights + (tile + group) * num_pairs * pair_bytes;
    for (int block = 0; block < num_blocks; ++block) {
      const int row = task.num_rows * block / num_blocks;
      const int rows = task.num_rows * (block + 1) / num_blocks - row;
      const std::int64_t step = group * pair_bytes / num_blocks;
      Multiply<W>(task, {row, tile}, rows, group, {next + block * step * num_pairs, step});
    }
  }
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_MATMUL_KERNEL_H_
