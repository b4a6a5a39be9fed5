// Vectors that fill one register of FORERUN_REGISTER_BYTES, with the compiler's own operators. The
// including vec_*.h adds what has no operator: MultiplyLow, Interleave and MaskOf.
#ifndef FORERUN_CPP_UTIL_SIMD_REGISTERS_H_
#define FORERUN_CPP_UTIL_SIMD_REGISTERS_H_

#include <cstdint>

#include "cpp/util/simd/isa_macros.h"

#if !defined(FORERUN_REGISTER_BYTES)
#define FORERUN_REGISTER_BYTES 16
#endif

namespace forerun::FORERUN_ISA {

inline constexpr int kFloatLanes = FORERUN_REGISTER_BYTES / 4;
inline constexpr int kDoubleLanes = FORERUN_REGISTER_BYTES / 8;

using Floats = float __attribute__((vector_size(FORERUN_REGISTER_BYTES)));
using HalfFloats = float __attribute__((vector_size(FORERUN_REGISTER_BYTES / 2)));
using Ints = std::int32_t __attribute__((vector_size(FORERUN_REGISTER_BYTES)));
using UnsignedInts = std::uint32_t __attribute__((vector_size(FORERUN_REGISTER_BYTES)));
using Doubles = double __attribute__((vector_size(FORERUN_REGISTER_BYTES)));
using Words = std::uint64_t __attribute__((vector_size(FORERUN_REGISTER_BYTES)));

template <class To, class From>
FORERUN_INLINE To BitCast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Vector>
FORERUN_INLINE Vector LoadAs(const float* source) {
  Vector vector;
  __builtin_memcpy(&vector, source, sizeof(vector));
  return vector;
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_REGISTERS_H_
