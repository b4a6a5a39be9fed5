// How kernels of operations are launched.
#ifndef FORERUN_CUDA_OPS_LAUNCH_H_
#define FORERUN_CUDA_OPS_LAUNCH_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace forerun::cuda {

struct Launch {
  dim3 grid;
  unsigned threads;
  cudaStream_t stream;
  std::size_t shared_bytes = 0;
};

template <typename... Parameters, typename... Args>
cudaError_t Run(const Launch& launch, void (*kernel)(Parameters...), const Args&... args) {
  if (launch.grid.x == 0 || launch.grid.y == 0 || launch.grid.z == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = launch.grid;
  config.blockDim = dim3(launch.threads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// Lets a kernel have as much shared memory as a block may.
template <typename... Parameters>
cudaError_t AllowShared(void (*kernel)(Parameters...)) {
  int most_bytes = 0;
  const cudaError_t status =
      cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, /*device=*/0);
  if (status != cudaSuccess) return status;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes);
}

// Runs a kernel that asks for more than 48 KB, which must be allowed once in a process.
template <auto* kKernel, typename... Args>
cudaError_t RunShared(const Launch& launch, const Args&... args) {
  static std::mutex mutex;
  static bool is_allowed = false;
  {
    const std::lock_guard lock(mutex);
    const cudaError_t status = is_allowed ? cudaSuccess : AllowShared(kKernel);
    if (status != cudaSuccess) return status;
    is_allowed = true;
  }
  return Run(launch, kKernel, args...);
}

inline constexpr unsigned kElementThreads = 256;

// Blocks of kElementThreads threads of which every thread takes one of `count` elements after the
// other: only along x may a grid have more than 65,535 blocks, and there no more than fit an int.
inline unsigned NumElementBlocks(std::int64_t count) {
  constexpr std::int64_t kMost = 1 << 20;
  return static_cast<unsigned>(
      std::min((count + kElementThreads - 1) / std::int64_t{kElementThreads}, kMost));
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_LAUNCH_H_
