// Sixteen floats in two AVX2 registers. The operations that every vec_*.h offers; kernels are
// written once on top of them.
#ifndef FORERUN_CPP_UTIL_SIMD_VEC_AVX2_H_
#define FORERUN_CPP_UTIL_SIMD_VEC_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#define FORERUN_REGISTER_BYTES 32
#include "cpp/util/simd/registers.h"

namespace forerun::FORERUN_ISA {

struct V16 {
  __m256 lo, hi;
};

inline constexpr int kNumRegisters = 8;  // vectors that the register file holds
inline constexpr int kMaxTileRows = 6;   // rows that share a load of weights

FORERUN_INLINE V16 Join(__m256 lo, __m256 hi) { return {lo, hi}; }
FORERUN_INLINE __m256 Low(V16 a) { return a.lo; }
FORERUN_INLINE __m256 High(V16 a) { return a.hi; }

FORERUN_INLINE V16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
FORERUN_INLINE V16 Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
FORERUN_INLINE V16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
FORERUN_INLINE void Store(float* p, V16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}

FORERUN_INLINE V16 Add(V16 a, V16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
FORERUN_INLINE V16 Sub(V16 a, V16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
FORERUN_INLINE V16 Mul(V16 a, V16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
FORERUN_INLINE V16 Div(V16 a, V16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
// a * b + c. Spelled out because GCC otherwise renames accumulators, runs out of registers and
// spills them in the innermost loop.
FORERUN_INLINE V16 Fma(V16 a, V16 b, V16 c) {
  asm("vfmadd231ps %1, %2, %0" : "+x"(c.lo) : "x"(a.lo), "x"(b.lo));
  asm("vfmadd231ps %1, %2, %0" : "+x"(c.hi) : "x"(a.hi), "x"(b.hi));
  return c;
}
// b where either is NaN.
FORERUN_INLINE V16 Max(V16 a, V16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
FORERUN_INLINE V16 Min(V16 a, V16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
// a < b ? yes : no, lane by lane.
FORERUN_INLINE V16 SelectLess(V16 a, V16 b, V16 yes, V16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
FORERUN_INLINE V16 Abs(V16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
// |a| with the sign of b.
FORERUN_INLINE V16 CopySign(V16 a, V16 b) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_andnot_ps(sign, a.lo), _mm256_and_ps(sign, b.lo)),
          _mm256_or_ps(_mm256_andnot_ps(sign, a.hi), _mm256_and_ps(sign, b.hi))};
}
// The low bits as the exponent of a float whose other bits are 0.
FORERUN_INLINE V16 LowBitsToExponent(V16 a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.lo), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.hi), 23))};
}
FORERUN_INLINE float ReduceMax(V16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  four = _mm_max_ss(four, _mm_movehdup_ps(four));
  return _mm_cvtss_f32(four);
}

FORERUN_INLINE __m256 WidenBFloat16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
// Sixteen consecutive bfloat16.
FORERUN_INLINE V16 Load(const std::uint16_t* p) {
  return {WidenBFloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          WidenBFloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
// Sixteen consecutive integers.
FORERUN_INLINE V16 Load(const std::int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
// The first and the second of sixteen pairs of bfloat16.
FORERUN_INLINE V16 LoadEven(const std::uint16_t* p) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
FORERUN_INLINE V16 LoadOdd(const std::uint16_t* p) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  return {_mm256_castsi256_ps(_mm256_and_si256(lo, mask)),
          _mm256_castsi256_ps(_mm256_and_si256(hi, mask))};
}

inline constexpr Words kLaneIndices = {0, 1, 2, 3};

// The products of the low halves of 64-bit lanes.
FORERUN_INLINE Words MultiplyLow(Words a, std::uint32_t b) {
  return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
}
// The lanes of both in turns: a[0], b[0], a[1], b[1] and so on.
FORERUN_INLINE void Interleave(Words a, Words b, Words out[2]) {
  out[0] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  out[1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
// Bit i is set when lane i, 0 or -1, is.
FORERUN_INLINE std::uint64_t MaskOf(Ints lanes) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)lanes));
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_VEC_AVX2_H_
