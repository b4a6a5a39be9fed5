// Verification of logits in other libraries' tensors on the GPU.
#ifndef FORERUN_CUDA_LIBRARY_TENSOR_VERIFIER_H_
#define FORERUN_CUDA_LIBRARY_TENSOR_VERIFIER_H_

#include <memory>

#include "cpp/verify/tensor_verifier.h"

namespace forerun::cuda {

// On the GPU of FindGpu. Throws DeviceError.
std::unique_ptr<TensorVerifier> OpenTensorVerifier();

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_LIBRARY_TENSOR_VERIFIER_H_
