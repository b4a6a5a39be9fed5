// How kernels on rows are launched.
#ifndef FORERUN_CUDA_VERIFY_ROW_LAUNCH_H_
#define FORERUN_CUDA_VERIFY_ROW_LAUNCH_H_

#include "cpp/tensor/dtype.h"
#include "cuda/portable.cuh"
#include "cuda/verify/row_state.h"

namespace forerun::cuda {

struct RowGrid {
  unsigned rows, tiles;  // x and y: only along x may a grid have more than 65,535 blocks
  cudaStream_t stream;
};

// Blocks of kRowThreads threads.
template <typename Kernel, typename... Args>
cudaError_t LaunchRows(const RowGrid& grid, Kernel kernel, const Args&... args) {
  if (grid.rows == 0 || grid.tiles == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.rows, grid.tiles);
  config.blockDim = dim3(kRowThreads);
  config.stream = grid.stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// launch(a value of the type that stores `dtype`).
template <typename Launch>
cudaError_t WithLogitsType(DType dtype, Launch launch) {
  switch (dtype) {
    case DType::kFloat32:
      return launch(float{});
    case DType::kBFloat16:
      return launch(__nv_bfloat16{});
    case DType::kFloat16:
      return launch(__half{});
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_ROW_LAUNCH_H_
