// The vectors of the instruction set that this translation unit is compiled for: sixteen floats
// (V16), and for some instruction sets single registers (registers.h).
#ifndef FORERUN_CPP_UTIL_SIMD_VEC_H_
#define FORERUN_CPP_UTIL_SIMD_VEC_H_

#include "cpp/util/simd/isa_macros.h"

#include FORERUN_VEC_HEADER

#endif  // FORERUN_CPP_UTIL_SIMD_VEC_H_
