// How the weights of a product meet its activations.
#ifndef FORERUN_CPP_OPS_CPU_MATMUL_WEIGHTS_H_
#define FORERUN_CPP_OPS_CPU_MATMUL_WEIGHTS_H_

#include "cpp/ops/cpu/weight_tile.h"
#include "cpp/util/simd/vec_math.h"

namespace forerun::FORERUN_ISA {

template <int M, int T>
using Accumulators = V16[M][T];

// What all weights that are floats have in common: how many activations a step takes, and how many
// rows and tiles a product takes at once.
struct FloatWeights {
  static constexpr int kStepInputs = 2;
  static constexpr int kMaxRows = kMaxTileRows;
  static constexpr int TilesAtOnce(int rows) { return VectorsAtOnce(rows); }
};

// Float32 activations. Step adds a pair of inputs, HalfStep only the first of them.
template <class W>
struct Widened : FloatWeights {
  using Weight = typename W::Weight;
  using Input = float;
  static constexpr WeightFormat kFormat = W::kFormat;
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
  static constexpr WeightFormat kFormat = WeightFormat::kBFloat16;
  static FORERUN_INLINE V16 First(const Weight* pair) { return LoadEven(pair); }
  static FORERUN_INLINE V16 Second(const Weight* pair) { return LoadOdd(pair); }
};
using BFloat16Weights = Widened<BFloat16Pairs>;

struct Float32Pairs {
  using Weight = float;
  static constexpr WeightFormat kFormat = WeightFormat::kFloat32;
  static FORERUN_INLINE V16 First(const Weight* pair) { return Load(pair); }
  static FORERUN_INLINE V16 Second(const Weight* pair) { return Load(pair + kLanes); }
};
using Float32Weights = Widened<Float32Pairs>;

#if defined(FORERUN_HAS_BFLOAT16_DOT)
// Activations are bfloat16 pairs as well; the processor multiplies and adds a pair at once.
struct BFloat16Dot : FloatWeights {
  using Weight = std::uint16_t;
  using Input = std::uint16_t;
  static constexpr WeightFormat kFormat = WeightFormat::kBFloat16;
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

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_MATMUL_WEIGHTS_H_
