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
  static constexpr IntegerFormat kLayout = IntegersOf(kFormat);
  static constexpr bool kPaddedInput = true;
  static constexpr int kStepInputs = StepInputs(kLayout) / kWeightGroup;
  static constexpr int kMaxRows = FORERUN_SANITIZED ? 2 : kMaxIntegerRows;
  // The accumulators of a group leave no room for a second tile; one tile is one stream.
  static constexpr int TilesAtOnce(int) { return 1; }

  static constexpr int kQuads = kLayout.group / kInputsPerQuad;
  static constexpr int kLowLoads = NumLowLoads(kLayout);
  static constexpr int kHeaderBytes = HeaderBytes(kLayout);
  static constexpr int kGroupBytes = NumLoads(kLayout) * kLoadBytes;
  static constexpr int kHighBits = kLayout.bits - 4;
  using GroupDots = Dots<kLayout.bits, kLayout.zero>;

  template <int M>
  using Sums = typename GroupDots::Sum[M];

  // The scales of a group, of the step with this header, and what is added to each product.
  static FORERUN_INLINE V16 ScaleOf(const Weight* header, int group) {
    constexpr int kFirst = ScaleOffset(kLayout, 0), kEach = ScaleOffset(kLayout, 1) - kFirst;
    const Weight* own = header + kFirst + group * kEach;
    const auto* halves = reinterpret_cast<const std::uint16_t*>(header);
    if constexpr (kLayout.scales == ScaleKind::kSuper) {
      return Mul(LoadFloat16(halves), LoadBytes(own));
    } else if constexpr (kLayout.scales == ScaleKind::kSubScale) {
      return Mul(LoadFloat16(halves), LoadBytes(reinterpret_cast<const std::int8_t*>(own)));
    } else if constexpr (kLayout.scales == ScaleKind::kZeroPoint) {
      return LoadFloat24(halves, header + kHalfVector);
    } else {
      return LoadFloat16(reinterpret_cast<const std::uint16_t*>(own));
    }
  }
  static FORERUN_INLINE V16 MinimumOf(const Weight* header, int group, V16 scale) {
    constexpr int kFirst = MinimumOffset(kLayout, 0), kEach = MinimumOffset(kLayout, 1) - kFirst;
    const Weight* own = header + kFirst + group * kEach;
    if constexpr (kLayout.scales == ScaleKind::kSuper) {
      const auto* minima = reinterpret_cast<const std::uint16_t*>(header + kHalfVector);
      return Sub(Zero(), Mul(LoadFloat16(minima), LoadBytes(own)));
    } else if constexpr (kLayout.scales == ScaleKind::kZeroPoint) {
      return Sub(Zero(), Mul(scale, LoadBytes(own)));
    } else {
      return LoadFloat16(reinterpret_cast<const std::uint16_t*>(own));
    }
  }

  template <int M>
  static FORERUN_INLINE void AddQuad(Quads weights, int quad, const Input* x, std::int64_t x_stride,
                                     Sums<M>& dots) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const std::int8_t* values = x[m * x_stride].values + quad * kInputsPerQuad;
      dots[m] = GroupDots::Add(dots[m], weights, values);
    }
  }

  // Load i of a group and those after it; `high` has the bits above the low four. The group's
  // activations begin with quad kFirst of x.
  template <int M, int kFirst, int i>
  static FORERUN_INLINE void AddLoads(const Weight* loads, Quads high, const Input* x,
                                      std::int64_t x_stride, Sums<M>& dots) {
    const Quads weights = LoadQuads(loads + i * kLoadBytes);
    if constexpr (kLayout.bits == 8) {
      AddQuad<M>(weights, kFirst + i, x, x_stride, dots);
    } else {
      constexpr int kSecond = i + kQuads / 2;
      Quads first = LowHalves(weights), second = HighHalves(weights);
      if constexpr (kHighBits > 0) {
        constexpr int kMask = ((1 << kHighBits) - 1) << 4;
        first = Or(first, ShiftAndMask<4 - kHighBits * i, kMask>(high));
        second = Or(second, ShiftAndMask<4 - kHighBits * kSecond, kMask>(high));
      }
      AddQuad<M>(first, kFirst + i, x, x_stride, dots);
      AddQuad<M>(second, kFirst + kSecond, x, x_stride, dots);
      if constexpr ((2 * i + 2) % GroupDots::kMostAdds == 0 && i + 1 < kLowLoads) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) dots[m] = GroupDots::Widen(dots[m]);
      }
    }
    if constexpr (i + 1 < kLowLoads) AddLoads<M, kFirst, i + 1>(loads, high, x, x_stride, dots);
  }

  static FORERUN_INLINE std::int32_t NegSum(const Input& x, int first_quad) {
    if constexpr (kLayout.group == kWeightGroup) return x.neg_sum;
    return x.neg_halves[first_quad / kQuads];
  }

  // `group` counts within the step; its activations begin with quad kFirst of x.
  template <int M, int kFirst, int T>
  static FORERUN_INLINE_LARGE void AddGroup(const Weight* step, int group, const Input* x,
                                            std::int64_t x_stride, int t, Accumulators<M, T>& sum) {
    Sums<M> dots;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) dots[m] = GroupDots::Start(NegSum(x[m * x_stride], kFirst));
    const Weight* loads = step + kHeaderBytes + group * kGroupBytes;
    AddLoads<M, kFirst, 0>(loads, LoadQuads(loads + kGroupBytes - kLoadBytes), x, x_stride, dots);
    const V16 scale = ScaleOf(step, group);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Input& input = x[m * x_stride];
      const V16 dot = ToFloats(GroupDots::Finish(dots[m], NegSum(input, kFirst)));
      sum[m][t] = FusedFma(dot, Mul(scale, Set(input.scale)), sum[m][t]);
    }
    if constexpr (kLayout.has_minimum()) {
      const V16 minimum = MinimumOf(step, group, scale);
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
      const Weight* step = w + t * tile_stride;
#pragma GCC unroll 2
      for (int i = 0; i < kStepInputs; ++i) {
        if constexpr (kLayout.group == kWeightGroup) {
          AddGroup<M, 0, T>(step, i, x + i, x_stride, t, sum);
        } else {
          AddGroup<M, 0, T>(step, 2 * i, x + i, x_stride, t, sum);
          AddGroup<M, kQuads, T>(step, 2 * i + 1, x + i, x_stride, t, sum);
        }
      }
    }
  }
};

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_INTEGER_WEIGHTS_H_
