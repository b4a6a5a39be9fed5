// The table of libforerun_cuda.so, its only symbol that others see.
#include <memory>
#include <string>

#include "cpp/ops/cuda_library.h"
#include "cuda/library/gpu.h"
#include "cuda/library/tensor_verifier.h"

extern "C" __attribute__((visibility("default"))) const forerun::CudaLibrary*
forerun_cuda_library() {
  static const forerun::CudaLibrary kLibrary = {forerun::BuildId(), &forerun::cuda::OpenGpu,
                                                &forerun::cuda::OpenTensorVerifier};
  return &kLibrary;
}
