// Floats to integer weights: a group of sixteen outputs at a time, [kWeightGroup, kLanes], input
// after input. Sums are taken in the inputs' order, so the results are the same on every
// instruction set.
#ifndef FORERUN_CPP_OPS_CPU_QUANTIZE_WEIGHTS_H_
#define FORERUN_CPP_OPS_CPU_QUANTIZE_WEIGHTS_H_

#include "cpp/ops/cpu/integer_kernels.h"
#include "cpp/util/simd/vec_ints.h"

namespace forerun::FORERUN_ISA {

// To the nearest integer, ties to even. REQUIRES: |x| < 2^22.
FORERUN_INLINE V16 Round(V16 x) {
  const V16 magic = Set(12582912.0f);
  return Sub(Add(x, magic), magic);
}

FORERUN_INLINE V16 RoundAndClamp(V16 x, float least, float most) {
  return Max(Min(Round(x), Set(most)), Set(least));
}

// Of each output, the weight of largest magnitude; of two, the positive one.
FORERUN_INLINE V16 FarthestFromZero(const float* weights) {
  V16 least = Load(weights), most = least;
  for (int i = 1; i < kWeightGroup; ++i) {
    const V16 w = Load(weights + i * kLanes);
    least = Min(least, w);
    most = Max(most, w);
  }
  return SelectLess(most, Sub(Zero(), least), least, most);
}

// The scales of kInt4. Weights are rounded where the farthest becomes -8; of these integers, the
// scale is that of the least squared error, weighted by the magnitudes of the weights. A scale that
// clips or moves the farthest weight has less error yet, and costs the model more.
// REQUIRES: the weights are finite.
inline void FitScales(const float* weights, float* scales) {
  const V16 farthest = FarthestFromZero(weights);
  // Of zeros only, any divisor will do.
  const V16 divisor = SelectLess(Zero(), Abs(farthest), farthest, Set(1.0f));
  V16 product = Zero(), square = Zero();
  for (int i = 0; i < kWeightGroup; ++i) {
    const V16 unit = Div(Load(weights + i * kLanes), divisor);  // in [-1, 1]
    const V16 integer = RoundAndClamp(Mul(unit, Set(-8.0f)), -8.0f, 7.0f);
    const V16 weighted = Mul(integer, Abs(unit));
    product = Add(product, Mul(weighted, unit));
    square = Add(square, Mul(weighted, integer));
  }
  // The farthest weight alone makes `square` 64, but for zeros.
  Store(scales, Mul(Div(product, Max(square, Set(1.0f))), farthest));
}

// Rounds weights / divisor to integers of kBits with a sign, and stores them as weight_tile.h says.
template <int kBits>
inline void StoreIntegers(const float* weights, const float* divisors, std::uint8_t* loads) {
  constexpr float kZero = 1 << (kBits - 1);
  constexpr std::uint32_t kMask = kBits == 8 ? 0xffffffffu : 0x0f0f0f0fu;
  constexpr std::uint32_t kZeros = 0x01010101u << (kBits - 1);
  constexpr int kQuads = kWeightGroup / 4, kLoads = kQuads * kBits / 8;
  alignas(64) std::int8_t integers[kWeightGroup * kLanes];
  const V16 divisor = Load(divisors);
  for (int i = 0; i < kWeightGroup; ++i) {
    const V16 quotient = Div(Load(weights + i * kLanes), divisor);
    StoreBytes(integers + i * kLanes, RoundToInts(RoundAndClamp(quotient, -kZero, kZero - 1.0f)));
  }
  std::uint32_t words[kQuads][kLanes];  // four inputs of each output
  for (int quad = 0; quad < kQuads; ++quad) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(integers) + quad * 4 * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::uint32_t word = bytes[lane] |
                                 static_cast<std::uint32_t>(bytes[kLanes + lane]) << 8 |
                                 static_cast<std::uint32_t>(bytes[2 * kLanes + lane]) << 16 |
                                 static_cast<std::uint32_t>(bytes[3 * kLanes + lane]) << 24;
      words[quad][lane] = (word & kMask) ^ kZeros;
    }
  }
  if constexpr (kBits == 4) {
    for (int i = 0; i < kLoads; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) words[i][lane] |= words[i + kLoads][lane] << 4;
    }
  }
  __builtin_memcpy(loads, words, sizeof(words[0]) * kLoads);
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_QUANTIZE_WEIGHTS_H_
