// Activation functions in kernels, with the C library's functions of float32.
#ifndef FORERUN_CUDA_OPS_ACTIVATION_CUH_
#define FORERUN_CUDA_OPS_ACTIVATION_CUH_

#include "cpp/ops/activation.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {

__device__ inline float Activated(Activation activation, float x) {
  constexpr float kSqrt2OverPi = 0.797884561f, kSqrtHalf = 0.707106781f;
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0f + expf(-x));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * kSqrtHalf));
    case Activation::kSigmoid:
      break;
  }
  return 1.0f / (1.0f + expf(-x));
}

__device__ inline float CapSoftly(float x, float cap) { return cap * tanhf(x / cap); }

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ACTIVATION_CUH_
