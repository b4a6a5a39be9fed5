// Sixteen floats of whichever instruction set this translation unit was compiled for. It defines
// FORERUN_ISA, its namespace, and FORERUN_VEC_HEADER before anything else.
#ifndef FORERUN_CPP_UTIL_SIMD_VEC_H_
#define FORERUN_CPP_UTIL_SIMD_VEC_H_

#define FORERUN_INLINE inline __attribute__((always_inline))

#include FORERUN_VEC_HEADER

#endif  // FORERUN_CPP_UTIL_SIMD_VEC_H_
