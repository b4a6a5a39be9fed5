// Small uploads that wait for nothing.
#ifndef FORERUN_CUDA_VERIFY_STAGED_UPLOAD_H_
#define FORERUN_CUDA_VERIFY_STAGED_UPLOAD_H_

#include <cuda_runtime.h>

#include <array>
#include <cstddef>

#include "cuda/check_cuda.h"
#include "cuda/verify/step_buffer.h"

namespace forerun::cuda {

// One upload after the other through pinned memory into one piece of the GPU's: what is launched
// after an upload finds it there until the next one. Several uploads may be on their way.
class StagedUpload {
 public:
  explicit StagedUpload(cudaStream_t stream) : stream_(stream) {}
  StagedUpload(const StagedUpload&) = delete;
  StagedUpload& operator=(const StagedUpload&) = delete;
  ~StagedUpload() {
    for (Stage& stage : stages_) {
      if (stage.sent != nullptr) cudaEventDestroy(stage.sent);
    }
  }

  cudaStream_t stream() const { return stream_; }
  // Uploads of at most so many bytes allocate nothing. Others make room for themselves.
  void Reserve(std::size_t num_bytes) {
    for (Stage& stage : stages_) {
      MakeEvent(stage);
      WaitFor(stage);
      stage.pinned.Reserve(num_bytes);
    }
    device_.Reserve(num_bytes);
  }

  // Memory of the host to be filled.
  std::byte* Start(std::size_t num_bytes) {
    Stage& stage = stages_[current_];
    MakeEvent(stage);
    WaitFor(stage);
    stage.pinned.Grow(num_bytes);
    num_bytes_ = num_bytes;
    return stage.pinned.data();
  }
  // Starts the copy of what was filled; returns where it goes.
  const std::byte* Send() {
    Stage& stage = stages_[current_];
    current_ = (current_ + 1) % stages_.size();
    device_.Grow(num_bytes_);  // to free the old memory waits for all that reads it
    CheckCuda(cudaMemcpyAsync(device_.data(), stage.pinned.data(), num_bytes_,
                              cudaMemcpyHostToDevice, stream_),
              "an upload");
    CheckCuda(cudaEventRecord(stage.sent, stream_), "an upload");
    stage.was_sent = true;
    return device_.data();
  }

 private:
  struct Stage {
    PinnedBuffer pinned{0};
    cudaEvent_t sent = nullptr;
    bool was_sent = false;
  };

  // Until its memory is free again, as it usually is.
  static void WaitFor(const Stage& stage) {
    if (!stage.was_sent) return;
    cudaError_t status = cudaEventQuery(stage.sent);
    if (status == cudaErrorNotReady) {
      cudaGetLastError();  // of a launch that comes later it is none
      status = cudaEventSynchronize(stage.sent);
    }
    CheckCuda(status, "an earlier upload");
  }
  static void MakeEvent(Stage& stage) {
    if (stage.sent != nullptr) return;
    CheckCuda(cudaEventCreateWithFlags(&stage.sent, cudaEventDisableTiming), "an event");
  }

  cudaStream_t stream_;
  std::array<Stage, 4> stages_;
  std::size_t current_ = 0;
  std::size_t num_bytes_ = 0;
  DeviceBuffer device_{0};
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_STAGED_UPLOAD_H_
