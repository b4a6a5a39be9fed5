// Errors of CUDA's runtime as exceptions.
#ifndef FORERUN_CUDA_CHECK_CUDA_H_
#define FORERUN_CUDA_CHECK_CUDA_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "forerun/error.h"

namespace forerun::cuda {

// Throws DeviceError unless a call of CUDA's runtime succeeded; `wanted` says what it was to do. An
// allocation's error says how much memory is free.
inline void CheckCuda(cudaError_t status, const std::string& wanted) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next check of a launch finds it again
  std::size_t num_free = 0, num_total = 0;
  // After a kernel that failed every call does.
  const bool answers = cudaMemGetInfo(&num_free, &num_total) == cudaSuccess;
  if (status == cudaErrorMemoryAllocation) {
    // A GPU that is full of others' memory has none left to answer with.
    throw DeviceError(wanted,
                      answers
                          ? std::to_string(num_free) + " bytes free of " + std::to_string(num_total)
                          : "no memory free",
                      "a smaller model or weights of fewer bits, lower max_num_seqs or "
                      "max_num_batched_tokens, or free memory of the GPU");
  }
  const bool is_refused_launch = status == cudaErrorLaunchOutOfResources;
  throw DeviceError(
      wanted, "CUDA error " + std::to_string(status) + " (" + cudaGetErrorString(status) + ")",
      !answers ? "the GPU does nothing more for this process: start it again, or go on on "
                 "the CPU; compute-sanitizer tells more of failed kernels"
      : is_refused_launch ? "what failed can be tried again"
                          : "use device 'cpu' if it happens again",
      /*is_lost=*/!answers);
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_CHECK_CUDA_H_
