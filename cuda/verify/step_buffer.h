// Memory that a step's data passes through, on the GPU or pinned on the host.
#ifndef FORERUN_CUDA_VERIFY_STEP_BUFFER_H_
#define FORERUN_CUDA_VERIFY_STEP_BUFFER_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/check_cuda.h"
#include "cuda/use_gpu.h"

namespace forerun::cuda {

// Of the GPU of UseGpu. Grows when asked and never shrinks. Throws DeviceError.
template <bool kPinned>
class StepBuffer {
 public:
  explicit StepBuffer(std::size_t num_bytes) { Grow(num_bytes); }
  StepBuffer(const StepBuffer&) = delete;
  StepBuffer& operator=(const StepBuffer&) = delete;
  ~StepBuffer() { Free(); }

  // Contents are lost when it grows. REQUIRES: nothing on the GPU uses it.
  void Grow(std::size_t num_bytes) {
    if (num_bytes <= num_bytes_) return;
    const std::size_t doubled = 2 * num_bytes_;  // so that it seldom grows
    if (doubled > num_bytes && Allocate(doubled) == cudaSuccess) return;
    Reserve(num_bytes);
  }
  // The same to no more than this, for a size that will do.
  void Reserve(std::size_t num_bytes) {
    if (num_bytes <= num_bytes_) return;
    CheckCuda(Allocate(num_bytes), std::to_string(num_bytes) + " bytes of " +
                                       (kPinned ? "pinned" : "GPU") +
                                       " memory for the data of a step");
  }

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  cudaError_t Allocate(std::size_t num_bytes) {
    Free();
    const UseGpu use;
    const cudaError_t status =
        kPinned ? cudaMallocHost(&data_, num_bytes) : cudaMalloc(&data_, num_bytes);
    cudaGetLastError();  // of a launch that comes later it is none
    if (status == cudaSuccess) {
      num_bytes_ = num_bytes;
    } else {
      data_ = nullptr;
    }
    return status;
  }
  // Nothing can be done about an error: an earlier call has reported it.
  void Free() {
    const UseGpu use;
    if (kPinned) {
      cudaFreeHost(data_);
    } else {
      cudaFree(data_);
    }
    data_ = nullptr;
    num_bytes_ = 0;
  }

  void* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};
// Hands out aligned parts of memory, one after the other.
class Parts {
 public:
  // Null: to count the bytes that the parts need.
  explicit Parts(const void* memory) : begin_(reinterpret_cast<std::uintptr_t>(memory)) {}

  template <typename T>
  T* Take(std::size_t count) {
    T* const part = reinterpret_cast<T*>(begin_ + num_bytes_);
    num_bytes_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return part;
  }
  std::size_t num_bytes() const { return num_bytes_; }

 private:
  static constexpr std::size_t kAlignment = 256;

  const std::uintptr_t begin_;
  std::size_t num_bytes_ = 0;
};

using DeviceBuffer = StepBuffer</*kPinned=*/false>;
using PinnedBuffer = StepBuffer</*kPinned=*/true>;

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_STEP_BUFFER_H_
