// What every kernel includes. Kernels are compiled by nvcc, and by g++ against the headers of
// cuda/emulation: what differs between the two is here and nowhere else.
#ifndef FORERUN_CUDA_PORTABLE_CUH_
#define FORERUN_CUDA_PORTABLE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#if !defined(__CUDACC__)
#include <emulated/instructions.h>
#endif

namespace forerun::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float ToFloat(__half x) { return __half2float(x); }

#if defined(__CUDACC__)

// d += a b on the tensor cores: a [16, 16], b [16, 8], d [16, 8]. Lane l holds, with g = l / 4 and
// t = l % 4, of a rows g and g + 8 at columns 2t, then the same at 2t + 8, two columns a word; of b
// rows 2t and 2t + 8 of column g; of d columns 2t and 2t + 1 of row g, then of row g + 8.
__device__ inline void MultiplyAdd(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit elements in shared memory, transposed: lane l brings the address of
// row l % 8 of matrix l / 8, 16 bytes, and gets of every matrix the elements of rows 2t and 2t + 1
// in column g.
__device__ inline void LoadTransposed(unsigned (&result)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(address)
               : "memory");
}

// The shared memory that the launch asked for.
__device__ inline void* DynamicShared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  return dynamic_shared;
}

#else

inline void MultiplyAdd(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                        const emulation::Site& site = emulation::Site::current()) {
  emulation::MmaM16N8K16(d, a, b, site);
}
inline void LoadTransposed(unsigned (&result)[4], const void* row,
                           const emulation::Site& site = emulation::Site::current()) {
  emulation::LoadMatrixX4Transposed(result, row, site);
}
inline void* DynamicShared() { return emulation::DynamicShared(); }

#endif

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_PORTABLE_CUH_
