// Sixteen integers in two AVX2 registers, beside floats of vec_avx2.h or vec_avx512.h; with
// AVX-VNNI where the unit asks for it. The operations that every ints_*.h offers; their results
// are the same on every instruction set, bit for bit.
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
// Of all lanes of both.
FORERUN_INLINE int ReduceAdd(V16i a, V16i b) {
  const __m256i eight =
      _mm256_add_epi32(_mm256_add_epi32(a.lo, a.hi), _mm256_add_epi32(b.lo, b.hi));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
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

FORERUN_INLINE __m256i BroadcastQuad(const std::int8_t* x) {
  int quad;
  __builtin_memcpy(&quad, x, sizeof(quad));
  return _mm256_set1_epi32(quad);
}

// For each of sixteen outputs, the sum of (weight - kZero) * x over a group of 32 inputs. Weights
// have kBits bits, x is in [-127, 127]. kZero is a power of two or 0. Between Start and Finish
// comes one Add for each quad of inputs, with a Widen after every kMostAdds of them but the last;
// *neg_sum is minus the sum of x.
template <int kBits, int kZero>
struct Dots;

#if defined(FORERUN_HAS_VNNI)
template <int kBits, int kZero>
struct Dots {
  using Sum = V16i;
  static constexpr int kMostAdds = 8;

  static FORERUN_INLINE Sum Start(const std::int32_t* neg_sum) {
    if constexpr (kZero == 0) return {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const __m256i sum = _mm256_slli_epi32(_mm256_set1_epi32(*neg_sum), __builtin_ctz(kZero));
    return {sum, sum};
  }
  static FORERUN_INLINE Sum Add(Sum sum, Quads weights, const std::int8_t* x) {
    const __m256i quad = BroadcastQuad(x);
    return {_mm256_dpbusd_avx_epi32(sum.lo, weights.lo, quad),
            _mm256_dpbusd_avx_epi32(sum.hi, weights.hi, quad)};
  }
  static FORERUN_INLINE V16i Finish(Sum sum, const std::int32_t*) { return sum; }
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

  static FORERUN_INLINE Sum Start(const std::int32_t*) {
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
  static FORERUN_INLINE V16i Finish(Sum sum, const std::int32_t* neg_sum) {
    const V16i dots = Widen(sum).widened;
    if constexpr (kZero == 0) return dots;
    const __m256i rest = _mm256_set1_epi32(*neg_sum * kZero);
    return {_mm256_add_epi32(dots.lo, rest), _mm256_add_epi32(dots.hi, rest)};
  }
};

// |weight - 128| times x with that sign: 2 * 128 * 127 < 2^15.
template <>
struct Dots<8, 128> {
  using Sum = V16i;
  static constexpr int kMostAdds = 8;

  static FORERUN_INLINE Sum Start(const std::int32_t*) {
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
  static FORERUN_INLINE V16i Finish(Sum sum, const std::int32_t*) { return sum; }
};
#endif

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_INTS_AVX2_H_
