// CUDA's scalar intrinsics.
#ifndef FORERUN_CUDA_EMULATION_INTRINSICS_H_
#define FORERUN_CUDA_EMULATION_INTRINSICS_H_

#include <math.h>  // CUDA has the functions of C in the global namespace.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((std::uint64_t{a} * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>((static_cast<Wide>(a) * b) >> 64);
}
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
  return std::countl_zero(static_cast<unsigned long long>(value));
}

// Hints to the caches.
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
// Macros, because the C library declares functions of these names. A GPU's own differ in the last
// bits: what must repeat bit for bit uses neither.
#define __expf(x) (::exp2f((x) * 1.4426950408889634f))
#define __logf(x) (::log2f(x) * 0.6931471805599453f)

using std::max;
using std::min;

#endif  // FORERUN_CUDA_EMULATION_INTRINSICS_H_
