// What tells a header which instruction set it is compiled for: FORERUN_ISA, the namespace of its
// functions, FORERUN_VEC_HEADER, its vectors, and FORERUN_INTS_HEADER, its integers. A source
// defines those that it needs before it includes anything; without them a header is the portable
// one.
#ifndef FORERUN_CPP_UTIL_SIMD_ISA_MACROS_H_
#define FORERUN_CPP_UTIL_SIMD_ISA_MACROS_H_

#if !defined(FORERUN_ISA)
#define FORERUN_ISA portable
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_portable.h"
#define FORERUN_INTS_HEADER "cpp/util/simd/ints_portable.h"
#endif

#define FORERUN_INLINE inline __attribute__((always_inline))

// For large functions that many others call: instrumented, these take too long to compile where all
// of it is inlined.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FORERUN_SANITIZED 1
#define FORERUN_INLINE_LARGE __attribute__((noinline)) inline
#else
#define FORERUN_SANITIZED 0
#define FORERUN_INLINE_LARGE FORERUN_INLINE
#endif

#endif  // FORERUN_CPP_UTIL_SIMD_ISA_MACROS_H_
