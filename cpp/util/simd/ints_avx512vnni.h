// Sixteen integers in one register; AVX-512 with VNNI. The contract of each operation is in
// ints_avx2.h and dots_avx2.h.
#ifndef FORERUN_CPP_UTIL_SIMD_INTS_AVX512VNNI_H_
#define FORERUN_CPP_UTIL_SIMD_INTS_AVX512VNNI_H_

#include "cpp/util/simd/vec_avx512.h"

namespace forerun::FORERUN_ISA {

struct V16i {
  __m512i v;
};
struct Quads {
  __m512i v;
};

struct IntPair {
  int first, second;
};

inline constexpr int kMaxIntegerRows = 12;  // each has a dot product and a sum

FORERUN_INLINE V16 ToFloats(V16i a) { return {_mm512_cvtepi32_ps(a.v)}; }
FORERUN_INLINE V16i RoundToInts(V16 a) { return {_mm512_cvtps_epi32(a.v)}; }
FORERUN_INLINE void StoreBytes(std::int8_t* p, V16i a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
FORERUN_INLINE __m256i AddHalves(__m512i a) {
  return _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
}
FORERUN_INLINE IntPair ReduceAdd(V16i a, V16i b) {
  const __m256i pairs = _mm256_hadd_epi32(AddHalves(a.v), AddHalves(b.v));
  const __m128i twos =
      _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  const __m128i sums = _mm_hadd_epi32(twos, twos);
  return {_mm_cvtsi128_si32(sums), _mm_extract_epi32(sums, 1)};
}
FORERUN_INLINE int MaxMagnitudeBits(V16 a, V16 b) {
  return _mm512_reduce_max_epi32(_mm512_max_epi32(Bits(Abs(a)), Bits(Abs(b))));
}
FORERUN_INLINE V16 LoadFloat16(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
FORERUN_INLINE __m512i WidenBytes(const std::uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FORERUN_INLINE __m512i WidenBytes(const std::int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class Byte>
FORERUN_INLINE V16 LoadBytes(const Byte* p) {
  return {_mm512_cvtepi32_ps(WidenBytes(p))};
}
FORERUN_INLINE V16 LoadFloat24(const std::uint16_t* high, const std::uint8_t* low) {
  return FromBits(_mm512_or_si512(Bits(Load(high)), _mm512_slli_epi32(WidenBytes(low), 8)));
}
FORERUN_INLINE V16 FusedFma(V16 a, V16 b, V16 c) { return Fma(a, b, c); }

FORERUN_INLINE Quads LoadQuads(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int kLeft, int kMask>
FORERUN_INLINE Quads ShiftAndMask(Quads a) {
  const __m512i shifted =
      kLeft < 0 ? _mm512_srli_epi16(a.v, -kLeft) : _mm512_slli_epi16(a.v, kLeft);
  return {_mm512_and_si512(shifted, _mm512_set1_epi8(kMask))};
}
FORERUN_INLINE Quads LowHalves(Quads a) { return ShiftAndMask<0, 0x0f>(a); }
FORERUN_INLINE Quads HighHalves(Quads a) { return ShiftAndMask<-4, 0x0f>(a); }
FORERUN_INLINE Quads Or(Quads a, Quads b) { return {_mm512_or_si512(a.v, b.v)}; }

template <int kBits, int kZero>
struct Dots {
  using Sum = V16i;
  static constexpr int kMostAdds = 8;

  static FORERUN_INLINE Sum Start(std::int32_t neg_sum) {
    if constexpr (kZero == 0) return {_mm512_setzero_si512()};
    return {_mm512_slli_epi32(_mm512_set1_epi32(neg_sum), __builtin_ctz(kZero))};
  }
  static FORERUN_INLINE Sum Add(Sum sum, Quads weights, const std::int8_t* x) {
    int quad;
    __builtin_memcpy(&quad, x, sizeof(quad));
    return {_mm512_dpbusd_epi32(sum.v, weights.v, _mm512_set1_epi32(quad))};
  }
  static FORERUN_INLINE V16i Finish(Sum sum, std::int32_t) { return sum; }
};

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_INTS_AVX512VNNI_H_
