// How weights of integer formats meet quantized activations.
//
// A group's dot products are integers, so their order does not matter and they are exact as floats.
// Each output then adds its groups in order, by one accumulator and with fused operations, which
// round alike everywhere.
#ifndef FORERUN_CPP_OPS_CPU_INTEGER_WEIGHTS_H_
#define FORERUN_CPP_OPS_CPU_INTEGER_WEIGHTS_H_

#include "cpp/ops/cpu/integer_kernels.h"
#include "cpp/ops/cpu/matmul_weights.h"
#include "cpp/ops/cpu/weight_tile.h"
#include "cpp/util/simd/vec_ints.h"

namespace forerun::FORERUN_ISA {

template <WeightFormat kIntegers>
struct IntegerWeights {
  using Weight = std::uint8_t;
  using Input = QuantizedGroup;
  static constexpr WeightFormat kFormat = kIntegers;
  static constexpr bool kPaddedInput = true;
  static constexpr int kStepInputs = kGroupsPerStep;
  static constexpr int kMaxRows = kMaxIntegerRows;
  // The accumulators of a group leave no room for a second tile; one tile is one stream.
  static constexpr int TilesAtOnce(int) { return 1; }

  static constexpr IntegerFormat kLayout = IntegersOf(kFormat);
  static constexpr int kLoads = NumLoads(kLayout);
  using GroupDots = Dots<kLayout.bits, kLayout.zero>;

  template <int M>
  using Sums = typename GroupDots::Sum[M];

  template <int M>
  static FORERUN_INLINE void AddQuad(Quads weights, int quad, const Input* x, std::int64_t x_stride,
                                     Sums<M>& dots) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const std::int8_t* values = x[m * x_stride].values + quad * kInputsPerQuad;
      dots[m] = GroupDots::Add(dots[m], weights, values);
    }
  }

  // Load i of a group and those after it; `high` has the bits above the low four.
  template <int M, int i>
  static FORERUN_INLINE void AddLoads(const Weight* loads, Quads high, const Input* x,
                                      std::int64_t x_stride, Sums<M>& dots) {
    const Quads weights = LoadQuads(loads + i * kLoadBytes);
    if constexpr (kLayout.bits == 8) {
      AddQuad<M>(weights, i, x, x_stride, dots);
      if constexpr (i + 1 < kLoads) AddLoads<M, i + 1>(loads, high, x, x_stride, dots);
    } else {
      Quads first = LowHalves(weights), second = HighHalves(weights);
      if constexpr (kLayout.bits == 5) {
        first = Or(first, ShiftAndMask<4 - i, 0x10>(high));
        second = Or(second, ShiftAndMask<-i, 0x10>(high));
      }
      AddQuad<M>(first, i, x, x_stride, dots);
      AddQuad<M>(second, i + 4, x, x_stride, dots);
      if constexpr ((2 * i + 2) % GroupDots::kMostAdds == 0 && i + 1 < 4) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) dots[m] = GroupDots::Widen(dots[m]);
      }
      if constexpr (i + 1 < 4) AddLoads<M, i + 1>(loads, high, x, x_stride, dots);
    }
  }

  // `group` counts within the step, whose first activations are at x.
  template <int M, int T>
  static FORERUN_INLINE void AddGroup(const Weight* step, int group, const Input* x,
                                      std::int64_t x_stride, int t, Accumulators<M, T>& sum) {
    x += group;
    Sums<M> dots;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) dots[m] = GroupDots::Start(&x[m * x_stride].neg_sum);
    const Weight* loads = step + HeaderBytes(kLayout) + group * kLoads * kLoadBytes;
    AddLoads<M, 0>(loads, LoadQuads(loads + (kLoads - 1) * kLoadBytes), x, x_stride, dots);
    const auto* scales = reinterpret_cast<const std::uint16_t*>(step) + group * kLanes;
    const V16 scale = LoadFloat16(scales);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Input& input = x[m * x_stride];
      const V16 dot = ToFloats(GroupDots::Finish(dots[m], &input.neg_sum));
      sum[m][t] = FusedFma(dot, Mul(scale, Set(input.scale)), sum[m][t]);
    }
    if constexpr (kLayout.has_minimum) {
      const V16 minimum = LoadFloat16(scales + kGroupsPerStep * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        sum[m][t] = FusedFma(minimum, Set(x[m * x_stride].weighted_sum), sum[m][t]);
      }
    }
  }

  template <int M, int T>
  static FORERUN_INLINE void Step(const Weight* w, std::int64_t tile_stride, const Input* x,
                                  std::int64_t x_stride, Accumulators<M, T>& sum) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 16
      for (int group = 0; group < kGroupsPerStep; ++group) {
        AddGroup<M, T>(w + t * tile_stride, group, x, x_stride, t, sum);
      }
    }
  }
};

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_INTEGER_WEIGHTS_H_
