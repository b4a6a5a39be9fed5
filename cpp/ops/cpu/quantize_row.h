// Activations as products with integer weights take them.
#ifndef FORERUN_CPP_OPS_CPU_QUANTIZE_ROW_H_
#define FORERUN_CPP_OPS_CPU_QUANTIZE_ROW_H_

#include "cpp/ops/cpu/integer_kernels.h"
#include "cpp/ops/cpu/weight_tile.h"
#include "cpp/util/simd/vec_ints.h"
#include "cpp/util/simd/vec_math.h"

namespace forerun::FORERUN_ISA {

// Magnitudes below it count as 0: 127 divided by them might not be a number.
inline constexpr float kLeastMagnitude = 0x1p-120f;

FORERUN_INLINE void QuantizeGroup(V16 first, V16 second, QuantizedGroup* out) {
  const int bits = MaxMagnitudeBits(first, second);
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, sizeof(magnitude));
  if (!(magnitude >= kLeastMagnitude && magnitude <= __FLT_MAX__)) {
    const bool is_finite = magnitude < kLeastMagnitude;
    *out = {};
    out->scale = out->weighted_sum = is_finite ? 0.0f : __builtin_nanf("");
    return;
  }
  const V16 inverse = Set(127.0f / magnitude);
  const V16i a = RoundToInts(Mul(first, inverse)), b = RoundToInts(Mul(second, inverse));
  StoreBytes(out->values, a);
  StoreBytes(out->values + kLanes, b);
  const IntPair sums = ReduceAdd(a, b);
  const int sum = sums.first + sums.second;
  out->scale = magnitude / 127.0f;
  out->weighted_sum = out->scale * static_cast<float>(sum);
  out->neg_sum = -sum;
  out->neg_halves[0] = static_cast<std::int16_t>(-sums.first);
  out->neg_halves[1] = static_cast<std::int16_t>(-sums.second);
}

inline void QuantizeRow(const float* x, int n, QuantizedGroup* out) {
  int i = 0;
  for (; i + kWeightGroup <= n; i += kWeightGroup) {
    QuantizeGroup(Load(x + i), Load(x + i + kLanes), out++);
  }
  if (i < n) {
    const int rest = n - i;
    QuantizeGroup(LoadPartial(x + i, MinOf(rest, kLanes)),
                  LoadPartial(x + i + kLanes, MaxOf(rest - kLanes, 0)), out++);
    i += kWeightGroup;
  }
  if (i % kPaddedInputs != 0) *out = {};
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_QUANTIZE_ROW_H_
