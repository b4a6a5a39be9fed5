// The GPU that is used, as the calling thread's current one.
#ifndef FORERUN_CUDA_USE_GPU_H_
#define FORERUN_CUDA_USE_GPU_H_

#include <cuda_runtime.h>

namespace forerun::cuda {

// The first of the visible GPUs is the current one of the thread while this lives; then the one
// that the caller had chosen is again. CUDA allocates, launches and waits on the current GPU, and
// threads begin with the first. An error here comes again from the calls that follow.
//
// What other threads capture into graphs meanwhile, as PyTorch does, forbids nothing: CUDA would
// fail an allocation, a wait or a query here, and lose their capture. For that nothing here may
// wait for the whole device.
class UseGpu {
 public:
  UseGpu() {
    cudaThreadExchangeStreamCaptureMode(&mode_);
    if (cudaGetDevice(&caller_) == cudaSuccess && caller_ != kGpu) cudaSetDevice(kGpu);
  }
  UseGpu(const UseGpu&) = delete;
  UseGpu& operator=(const UseGpu&) = delete;
  ~UseGpu() {
    if (caller_ != kGpu) cudaSetDevice(caller_);
    cudaThreadExchangeStreamCaptureMode(&mode_);
  }

 private:
  static constexpr int kGpu = 0;

  int caller_ = kGpu;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeThreadLocal;  // then the caller's
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_USE_GPU_H_
