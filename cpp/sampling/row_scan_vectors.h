// The widest vectors of the including source's instruction set, for row_scan_body.h alone.
#ifndef FORERUN_CPP_SAMPLING_ROW_SCAN_VECTORS_H_
#define FORERUN_CPP_SAMPLING_ROW_SCAN_VECTORS_H_

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace forerun {
namespace {

#if defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kFloatLanes = kVectorBytes / 4;
constexpr int kDoubleLanes = kVectorBytes / 8;

using Floats = float __attribute__((vector_size(kVectorBytes)));
using HalfFloats = float __attribute__((vector_size(kVectorBytes / 2)));
using Ints = std::int32_t __attribute__((vector_size(kVectorBytes)));
using UnsignedInts = std::uint32_t __attribute__((vector_size(kVectorBytes)));
using Doubles = double __attribute__((vector_size(kVectorBytes)));
using Longs = std::int64_t __attribute__((vector_size(kVectorBytes)));
using Words = std::uint64_t __attribute__((vector_size(kVectorBytes)));

#if defined(__AVX2__)
constexpr Words kLaneIndices = {0, 1, 2, 3};
#else
constexpr Words kLaneIndices = {0, 1};
#endif

template <typename Vector>
[[gnu::always_inline]] inline Vector Load(const float* source) {
  Vector vector;
  __builtin_memcpy(&vector, source, sizeof(vector));
  return vector;
}

// The products of the low halves of 64-bit lanes.
inline Words MultiplyLow(Words a, std::uint32_t b) {
#if defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__x86_64__)
  return (Words)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#elif defined(__aarch64__)
  return (Words)vmull_n_u32(vmovn_u64((uint64x2_t)a), b);
#else
  return (a & 0xffffffffu) * std::uint64_t{b};
#endif
}

// Bit i is set when lane i is.
inline std::uint64_t MaskOf(Ints lanes) {
#if defined(__AVX2__)
  return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)lanes));
#elif defined(__x86_64__)
  return static_cast<std::uint32_t>(_mm_movemask_ps((__m128)lanes));
#else
  std::uint64_t mask = 0;
  for (int lane = 0; lane < kFloatLanes; ++lane) mask |= std::uint64_t{lanes[lane] != 0} << lane;
  return mask;
#endif
}

}  // namespace
}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_ROW_SCAN_VECTORS_H_
