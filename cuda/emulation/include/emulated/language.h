// CUDA's language extensions in plain C++: qualifiers, vector types, built-in variables.
#ifndef FORERUN_CUDA_EMULATION_LANGUAGE_H_
#define FORERUN_CUDA_EMULATION_LANGUAGE_H_

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// Blocks run one after another, so that a static object is the running block's own.
#define __shared__ static

#define FORERUN_EMULATED_VECTORS(T, name, align2, align4)            \
  struct name##1 { T x; };                                           \
  struct alignas(align2) name##2 { T x, y; };                        \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(align4) name##4 { T x, y, z, w; };                  \
  inline name##1 make_##name##1(T x) { return {x}; }                 \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
FORERUN_EMULATED_VECTORS(signed char, char, 2, 4)
FORERUN_EMULATED_VECTORS(unsigned char, uchar, 2, 4)
FORERUN_EMULATED_VECTORS(short, short, 4, 8)
FORERUN_EMULATED_VECTORS(unsigned short, ushort, 4, 8)
FORERUN_EMULATED_VECTORS(int, int, 8, 16)
FORERUN_EMULATED_VECTORS(unsigned, uint, 8, 16)
FORERUN_EMULATED_VECTORS(long long, longlong, 16, 16)
FORERUN_EMULATED_VECTORS(unsigned long long, ulonglong, 16, 16)
FORERUN_EMULATED_VECTORS(float, float, 8, 16)
FORERUN_EMULATED_VECTORS(double, double, 16, 16)
#undef FORERUN_EMULATED_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Written at each switch between threads. Not const: the compiler must read them again.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#endif  // FORERUN_CUDA_EMULATION_LANGUAGE_H_
