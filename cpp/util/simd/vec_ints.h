// Sixteen integers (V16i) beside sixteen floats, and the dot products of bytes.
#ifndef FORERUN_CPP_UTIL_SIMD_VEC_INTS_H_
#define FORERUN_CPP_UTIL_SIMD_VEC_INTS_H_

#include "cpp/util/simd/isa_macros.h"

#include FORERUN_INTS_HEADER

#endif  // FORERUN_CPP_UTIL_SIMD_VEC_INTS_H_
