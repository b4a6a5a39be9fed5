// What every kernel includes. Kernels are compiled by nvcc, and by g++ against the headers of
// cuda/emulation: what differs between the two is here and nowhere else.
#ifndef FORERUN_CUDA_PORTABLE_CUH_
#define FORERUN_CUDA_PORTABLE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace forerun::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float ToFloat(__half x) { return __half2float(x); }

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_PORTABLE_CUH_
