// Sixteen floats in one AVX-512 register; AVX-512F, and AVX512_BF16 where the unit asks for it. The
// contract of each operation is in vec_avx2.h.
#ifndef FORERUN_CPP_UTIL_SIMD_VEC_AVX512_H_
#define FORERUN_CPP_UTIL_SIMD_VEC_AVX512_H_

#include <immintrin.h>

#include <cstdint>

#include "cpp/util/simd/isa_macros.h"

namespace forerun::FORERUN_ISA {

struct V16 {
  __m512 v;
};

inline constexpr int kNumRegisters = 32;
inline constexpr int kMaxTileRows = 12;  // with two tiles: 24 sums, 2 weights, 1 activation

FORERUN_INLINE V16 FromBits(__m512i bits) { return {_mm512_castsi512_ps(bits)}; }
FORERUN_INLINE __m512i Bits(V16 a) { return _mm512_castps_si512(a.v); }

FORERUN_INLINE V16 Join(__m256 lo, __m256 hi) {
  const __m512d low = _mm512_castps_pd(_mm512_castps256_ps512(lo));
  return {_mm512_castpd_ps(_mm512_insertf64x4(low, _mm256_castps_pd(hi), 1))};
}
FORERUN_INLINE __m256 Low(V16 a) { return _mm512_castps512_ps256(a.v); }
FORERUN_INLINE __m256 High(V16 a) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
}

FORERUN_INLINE V16 Zero() { return {_mm512_setzero_ps()}; }
FORERUN_INLINE V16 Set(float x) { return {_mm512_set1_ps(x)}; }
FORERUN_INLINE V16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
FORERUN_INLINE void Store(float* p, V16 a) { _mm512_storeu_ps(p, a.v); }

FORERUN_INLINE V16 Add(V16 a, V16 b) { return {_mm512_add_ps(a.v, b.v)}; }
FORERUN_INLINE V16 Sub(V16 a, V16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
FORERUN_INLINE V16 Mul(V16 a, V16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
FORERUN_INLINE V16 Div(V16 a, V16 b) { return {_mm512_div_ps(a.v, b.v)}; }
FORERUN_INLINE V16 Fma(V16 a, V16 b, V16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
FORERUN_INLINE V16 Max(V16 a, V16 b) { return {_mm512_max_ps(a.v, b.v)}; }
FORERUN_INLINE V16 Min(V16 a, V16 b) { return {_mm512_min_ps(a.v, b.v)}; }
FORERUN_INLINE V16 SelectLess(V16 a, V16 b, V16 yes, V16 no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
FORERUN_INLINE V16 Abs(V16 a) {
  return FromBits(_mm512_and_si512(Bits(a), _mm512_set1_epi32(0x7fffffff)));
}
FORERUN_INLINE V16 CopySign(V16 a, V16 b) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  return FromBits(_mm512_or_si512(_mm512_and_si512(magnitude, Bits(a)),
                                  _mm512_andnot_si512(magnitude, Bits(b))));
}
FORERUN_INLINE V16 LowBitsToExponent(V16 a) { return FromBits(_mm512_slli_epi32(Bits(a), 23)); }
FORERUN_INLINE float ReduceMax(V16 a) { return _mm512_reduce_max_ps(a.v); }

FORERUN_INLINE V16 Load(const std::uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return FromBits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
FORERUN_INLINE V16 Load(const std::int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
FORERUN_INLINE V16 LoadEven(const std::uint16_t* p) {
  return FromBits(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
FORERUN_INLINE V16 LoadOdd(const std::uint16_t* p) {
  return FromBits(
      _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

#if defined(FORERUN_HAS_BFLOAT16_DOT)
// Sixteen pairs of bfloat16.
struct Pairs {
  __m512bh v;
};

FORERUN_INLINE Pairs LoadPairs(const std::uint16_t* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
FORERUN_INLINE Pairs SetPair(const std::uint16_t* p) {
  int pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return {(__m512bh)_mm512_set1_epi32(pair)};
}
// c + the product of both firsts + the product of both seconds, summed as the processor does.
FORERUN_INLINE V16 AddDots(Pairs a, Pairs b, V16 c) { return {_mm512_dpbf16_ps(c.v, a.v, b.v)}; }
// The first `count` lanes as bfloat16, to nearest even.
FORERUN_INLINE void StoreRounded(std::uint16_t* p, V16 a, int count) {
  const __m256bh bits = _mm512_cvtneps_pbh(a.v);
  __builtin_memcpy(p, &bits, sizeof(std::uint16_t) * count);
}
#endif

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_VEC_AVX512_H_
