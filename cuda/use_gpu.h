// The GPU that is used, as the calling thread's current one.
#ifndef FORERUN_CUDA_USE_GPU_H_
#define FORERUN_CUDA_USE_GPU_H_

#include <cuda_runtime.h>

namespace forerun::cuda {

// The first of the visible GPUs is the current one of the thread while this lives; then the one
// that the caller had chosen is again. CUDA allocates, launches and waits on the current GPU, and
// threads begin with the first. An error here comes again from the calls that follow.
//
// Captures of other threads, as PyTorch makes them (of streams that do not block), do not disturb
// calls made here: in CUDA's default mode an allocation, a wait or a query would fail, and end the
// capture. A wait for the whole device does so in every mode, so nothing here makes one.
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
