// Sixteen integers in two AVX2 registers, beside floats of vec_avx2.h or vec_avx512.h. With
// dots_avx2.h, the operations that every FORERUN_INTS_HEADER offers; their results are the same on
// every instruction set, bit for bit.
#ifndef FORERUN_CPP_UTIL_SIMD_INTS_AVX2_H_
#define FORERUN_CPP_UTIL_SIMD_INTS_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#if defined(FORERUN_VEC_HEADER)
#include FORERUN_VEC_HEADER
#else
#include "cpp/util/simd/vec_avx2.h"
#endif

namespace forerun::FORERUN_ISA {

struct V16i {
  __m256i lo, hi;
};
// Four bytes of each of sixteen outputs.
struct Quads {
  __m256i lo, hi;
};

struct IntPair {
  int first, second;
};

inline constexpr int kMaxIntegerRows = 4;  // rows that share a load of weights

FORERUN_INLINE V16 ToFloats(V16i a) {
  return Join(_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi));
}
// To nearest, ties to even. REQUIRES: |a| < 2^22.
FORERUN_INLINE V16i RoundToInts(V16 a) {
  return {_mm256_cvtps_epi32(Low(a)), _mm256_cvtps_epi32(High(a))};
}
// REQUIRES: lanes in [-128, 127].
FORERUN_INLINE void StoreBytes(std::int8_t* p, V16i a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
// Of all lanes, of each of both.
FORERUN_INLINE IntPair ReduceAdd(V16i a, V16i b) {
  const __m256i pairs =
      _mm256_hadd_epi32(_mm256_add_epi32(a.lo, a.hi), _mm256_add_epi32(b.lo, b.hi));
  const __m128i twos =
      _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  const __m128i sums = _mm_hadd_epi32(twos, twos);
  return {_mm_cvtsi128_si32(sums), _mm_extract_epi32(sums, 1)};
}
// The bits of the largest magnitude of all lanes. Those of infinities and NaNs are larger than
// those of any number.
FORERUN_INLINE int MaxMagnitudeBits(V16 a, V16 b) {
  const V16 x = Abs(a), y = Abs(b);
  const __m256i eight =
      _mm256_max_epi32(_mm256_max_epi32(_mm256_castps_si256(Low(x)), _mm256_castps_si256(High(x))),
                       _mm256_max_epi32(_mm256_castps_si256(Low(y)), _mm256_castps_si256(High(y))));
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
FORERUN_INLINE V16 LoadFloat16(const std::uint16_t* p) {
  return Join(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
              _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8))));
}
FORERUN_INLINE __m256i WidenBytes(const std::uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
FORERUN_INLINE __m256i WidenBytes(const std::int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
// Sixteen bytes as floats.
template <class Byte>
FORERUN_INLINE V16 LoadBytes(const Byte* p) {
  return Join(_mm256_cvtepi32_ps(WidenBytes(p)), _mm256_cvtepi32_ps(WidenBytes(p + 8)));
}
// The floats with these high 16 bits, the next 8 bits and zeros.
FORERUN_INLINE V16 LoadFloat24(const std::uint16_t* high, const std::uint8_t* low) {
  const V16 floats = Load(high);
  const auto with = [](__m256 a, __m256i bits) {
    return _mm256_or_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 8)));
  };
  return Join(with(Low(floats), WidenBytes(low)), with(High(floats), WidenBytes(low + 8)));
}
// a * b + c, rounded once.
FORERUN_INLINE V16 FusedFma(V16 a, V16 b, V16 c) { return Fma(a, b, c); }

FORERUN_INLINE Quads LoadQuads(const std::uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
// Every byte shifted to the left (by less than 0: to the right), of which the mask's bits are left.
// REQUIRES: those come from the same byte.
template <int kLeft, int kMask>
FORERUN_INLINE __m256i ShiftAndMask(__m256i a) {
  const __m256i shifted = kLeft < 0 ? _mm256_srli_epi16(a, -kLeft) : _mm256_slli_epi16(a, kLeft);
  return _mm256_and_si256(shifted, _mm256_set1_epi8(kMask));
}
template <int kLeft, int kMask>
FORERUN_INLINE Quads ShiftAndMask(Quads a) {
  return {ShiftAndMask<kLeft, kMask>(a.lo), ShiftAndMask<kLeft, kMask>(a.hi)};
}
// The low and the high four bits of every byte.
FORERUN_INLINE Quads LowHalves(Quads a) { return ShiftAndMask<0, 0x0f>(a); }
FORERUN_INLINE Quads HighHalves(Quads a) { return ShiftAndMask<-4, 0x0f>(a); }
FORERUN_INLINE Quads Or(Quads a, Quads b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_INTS_AVX2_H_
