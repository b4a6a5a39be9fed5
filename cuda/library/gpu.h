// A GPU as a backend of the engine.
#ifndef FORERUN_CUDA_LIBRARY_GPU_H_
#define FORERUN_CUDA_LIBRARY_GPU_H_

#include <memory>

#include "cpp/ops/backend.h"

namespace forerun::cuda {

// The GPU of FindGpu. Throws DeviceError.
std::unique_ptr<Backend> OpenGpu();

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_LIBRARY_GPU_H_
