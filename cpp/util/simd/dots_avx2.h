// Dot products of bytes in two AVX2 registers; with AVX-VNNI where the unit asks for it.
#ifndef FORERUN_CPP_UTIL_SIMD_DOTS_AVX2_H_
#define FORERUN_CPP_UTIL_SIMD_DOTS_AVX2_H_

#include "cpp/util/simd/ints_avx2.h"

namespace forerun::FORERUN_ISA {

FORERUN_INLINE __m256i BroadcastQuad(const std::int8_t* x) {
  int quad;
  __builtin_memcpy(&quad, x, sizeof(quad));
  return _mm256_set1_epi32(quad);
}

// For each of sixteen outputs, the sum of (weight - kZero) * x over a group of at most 32 inputs.
// Weights have kBits bits, x is in [-127, 127]. kZero is a power of two or 0. Between Start and
// Finish comes one Add for each quad of inputs, with a Widen after every kMostAdds of them but the
// last; neg_sum is minus the sum of x.
template <int kBits, int kZero>
struct Dots;

#if defined(FORERUN_HAS_VNNI)
template <int kBits, int kZero>
struct Dots {
  using Sum = V16i;
  static constexpr int kMostAdds = 8;

  static FORERUN_INLINE Sum Start(std::int32_t neg_sum) {
    if constexpr (kZero == 0) return {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const __m256i sum = _mm256_slli_epi32(_mm256_set1_epi32(neg_sum), __builtin_ctz(kZero));
    return {sum, sum};
  }
  static FORERUN_INLINE Sum Add(Sum sum, Quads weights, const std::int8_t* x) {
    const __m256i quad = BroadcastQuad(x);
    return {_mm256_dpbusd_avx_epi32(sum.lo, weights.lo, quad),
            _mm256_dpbusd_avx_epi32(sum.hi, weights.hi, quad)};
  }
  static FORERUN_INLINE V16i Finish(Sum sum, std::int32_t) { return sum; }
};
#else
// Spelled out because GCC otherwise makes a tree of a group's sums, runs out of registers and
// spills the products.
FORERUN_INLINE __m256i AddInOrder16(__m256i sum, __m256i a) {
  asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(a));
  return sum;
}
FORERUN_INLINE __m256i AddInOrder32(__m256i sum, __m256i a) {
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(a));
  return sum;
}

// Pairs of products are added as 16 bits, as many as those can hold.
template <int kBits, int kZero>
struct Dots {
  static constexpr int kMostAdds = 32767 / (2 * 127 * ((1 << kBits) - 1));
  struct Sum {
    __m256i lo, hi;  // pairs of sums since the last Widen
    V16i widened;
  };

  static FORERUN_INLINE Sum Start(std::int32_t) {
    const __m256i zero = _mm256_setzero_si256();
    return {zero, zero, {zero, zero}};
  }
  static FORERUN_INLINE Sum Add(Sum sum, Quads weights, const std::int8_t* x) {
    const __m256i quad = BroadcastQuad(x);
    sum.lo = AddInOrder16(sum.lo, _mm256_maddubs_epi16(weights.lo, quad));
    sum.hi = AddInOrder16(sum.hi, _mm256_maddubs_epi16(weights.hi, quad));
    return sum;
  }
  static FORERUN_INLINE Sum Widen(Sum sum) {
    const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
    const V16i widened = {_mm256_add_epi32(sum.widened.lo, _mm256_madd_epi16(sum.lo, ones)),
                          _mm256_add_epi32(sum.widened.hi, _mm256_madd_epi16(sum.hi, ones))};
    return {zero, zero, widened};
  }
  static FORERUN_INLINE V16i Finish(Sum sum, std::int32_t neg_sum) {
    const V16i dots = Widen(sum).widened;
    if constexpr (kZero == 0) return dots;
    const __m256i rest = _mm256_set1_epi32(neg_sum * kZero);
    return {_mm256_add_epi32(dots.lo, rest), _mm256_add_epi32(dots.hi, rest)};
  }
};

// |weight - 128| times x with that sign: 2 * 128 * 127 < 2^15.
template <>
struct Dots<8, 128> {
  using Sum = V16i;
  static constexpr int kMostAdds = 8;

  static FORERUN_INLINE Sum Start(std::int32_t) {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
  }
  static FORERUN_INLINE __m256i AddHalf(__m256i sum, __m256i stored, __m256i quad) {
    const __m256i weights = _mm256_xor_si256(stored, _mm256_set1_epi8(-128));
    const __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(quad, weights));
    return AddInOrder32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static FORERUN_INLINE Sum Add(Sum sum, Quads weights, const std::int8_t* x) {
    const __m256i quad = BroadcastQuad(x);
    return {AddHalf(sum.lo, weights.lo, quad), AddHalf(sum.hi, weights.hi, quad)};
  }
  static FORERUN_INLINE V16i Finish(Sum sum, std::int32_t) { return sum; }
};
#endif

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_DOTS_AVX2_H_
