// Functions of sixteen lanes, the same for every instruction set. Each lane's result depends on
// that lane alone.
#ifndef FORERUN_CPP_UTIL_SIMD_VEC_MATH_H_
#define FORERUN_CPP_UTIL_SIMD_VEC_MATH_H_

#include "cpp/util/simd/lanes.h"
#include "cpp/util/simd/vec.h"

namespace forerun::FORERUN_ISA {

FORERUN_INLINE int MinOf(int a, int b) { return a < b ? a : b; }
FORERUN_INLINE int MaxOf(int a, int b) { return a < b ? b : a; }

// Weight vectors that a product of `rows` rows takes at once, beside their accumulators and one
// activation: 4, 2 or 1.
constexpr int VectorsAtOnce(int rows) {
  if (rows == 1 || rows * 4 + 4 + 1 <= kNumRegisters) return kNumRegisters >= 8 ? 4 : 1;
  return rows * 2 + 2 + 1 <= kNumRegisters ? 2 : 1;
}

// The first `count` lanes from memory, then zeros; nothing else is touched.
FORERUN_INLINE V16 LoadPartial(const float* p, int count) {
  alignas(64) float lane[kLanes] = {};
  for (int i = 0; i < count; ++i) lane[i] = p[i];
  return Load(lane);
}
FORERUN_INLINE void StorePartial(float* p, V16 a, int count) {
  alignas(64) float lane[kLanes];
  Store(lane, a);
  for (int i = 0; i < count; ++i) p[i] = lane[i];
}

// A fixed tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
FORERUN_INLINE float ReduceAdd(V16 a) {
  alignas(64) float lane[kLanes];
  Store(lane, a);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

template <int kCount>
FORERUN_INLINE V16 Polynomial(const float (&coefficient)[kCount], V16 x) {
  V16 sum = Set(coefficient[kCount - 1]);
#pragma GCC unroll 16
  for (int i = kCount - 2; i >= 0; --i) sum = Fma(sum, x, Set(coefficient[i]));
  return sum;
}

// e^x within 2 ulp for x in [-87.6, 88.3]; exactly 0 further down, e^88.3
// further up; NaN stays NaN.
FORERUN_INLINE V16 Exp(V16 x) {
  // (e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2]
  constexpr float kCoefficients[] = {0.499999934f, 0.166665201f, 0.0416683944f, 0.00836878124f,
                                     0.00138144582f};
  // Added to n, this leaves n + 127, the exponent's bits of 2^n, in the low bits of the sum.
  const V16 shift = Set(12582912.0f + 127.0f);
  const V16 clamped = Min(Set(88.3f), Max(Set(-88.03f), x));
  const V16 shifted = Fma(clamped, Set(1.44269504f), shift);
  const V16 n = Sub(shifted, shift);
  // ln 2 in two parts; the first has few enough bits that its product is exact.
  V16 r = Fma(n, Set(-0.693359375f), clamped);
  r = Fma(n, Set(2.12194440e-4f), r);
  const V16 power = Fma(Mul(r, r), Polynomial(kCoefficients, r), Add(r, Set(1.0f)));
  return Mul(power, LowBitsToExponent(shifted));
}

FORERUN_INLINE V16 Tanh(V16 x) {
  // (tanh(x) / x - 1) / x^2 in x^2 for |x| <= 0.6
  constexpr float kCoefficients[] = {-0.333333318f, 0.133332478f,    -0.0539524746f,
                                     0.0217344346f, -0.00826707822f, 0.00223105248f};
  const V16 square = Mul(x, x);
  const V16 small = Fma(Mul(x, square), Polynomial(kCoefficients, square), x);
  const V16 magnitude = Abs(x);
  const V16 growth = Exp(Add(magnitude, magnitude));
  const V16 large = Sub(Set(1.0f), Div(Set(2.0f), Add(growth, Set(1.0f))));
  return SelectLess(magnitude, Set(0.6f), small, CopySign(large, x));
}

FORERUN_INLINE V16 Erf(V16 x) {
  // erf(x) / x in x^2 for |x| <= 1, and log(1 - erf(x)) for 1 <= x <= 4
  constexpr float kSmall[] = {1.12837917f,    -0.376126271f,    0.112836002f,   -0.0268544444f,
                              0.00518953498f, -0.000802083809f, 7.88910887e-05f};
  constexpr float kLarge[] = {0.000188047968f, -1.12957846f,    -0.633219827f,   -0.108418646f,
                              0.0252082983f,   -0.00420457673f, 0.000441339264f, -2.16870854e-05f};
  const V16 square = Mul(x, x);
  const V16 magnitude = Abs(x);
  const V16 small = Mul(x, Polynomial(kSmall, square));
  const V16 tail = Exp(Polynomial(kLarge, Min(Set(4.0f), magnitude)));
  const V16 large = CopySign(Sub(Set(1.0f), tail), x);
  return SelectLess(magnitude, Set(1.0f), small, large);
}

// fn(offset, count, V16...) over n values: whole vectors, then the rest.
template <class Whole, class Rest>
FORERUN_INLINE void EachVector(int n, const Whole& whole, const Rest& rest) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) whole(i);
  if (i < n) rest(i, n - i);
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_VEC_MATH_H_
