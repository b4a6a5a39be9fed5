// Errors of CUDA's runtime as exceptions.
#ifndef FORERUN_CUDA_CHECK_CUDA_H_
#define FORERUN_CUDA_CHECK_CUDA_H_

#include <cuda_runtime.h>

#include <string>

#include "forerun/error.h"

namespace forerun::cuda {

// Throws DeviceError unless a call of CUDA's runtime succeeded; `wanted` says what it was to do.
inline void CheckCuda(cudaError_t status, const std::string& wanted) {
  if (status == cudaSuccess) return;
  throw DeviceError(
      wanted, "CUDA error " + std::to_string(status) + " (" + cudaGetErrorString(status) + ")",
      "the process can go on on the CPU; compute-sanitizer tells more of failed "
      "kernels");
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_CHECK_CUDA_H_
