// The GPU that is used, or what is missing.
#ifndef FORERUN_CUDA_LIBRARY_FIND_GPU_H_
#define FORERUN_CUDA_LIBRARY_FIND_GPU_H_

#include <string>

namespace forerun::cuda {

// Initializes the first visible GPU, that of UseGpu, and returns its name and compute capability.
// CUDA_VISIBLE_DEVICES chooses among several. Throws DeviceError where there is no driver, an old
// one, no GPU, or one that has no machine code here.
std::string FindGpu();

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_LIBRARY_FIND_GPU_H_
