// Verification on the GPU: the Verifier of the CUDA backend.
//
// Of a step one copy goes to the GPU (a SampleBatch), one comes back (where each request's walk
// ended, and the log-probabilities that were asked for), and Finish waits once, for an event.
// Logits are copied for requests that only the host can serve (SampleBatch::host_requests), one
// request at a time; their rows are counted.
#ifndef FORERUN_CUDA_VERIFY_CUDA_VERIFIER_H_
#define FORERUN_CUDA_VERIFY_CUDA_VERIFIER_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "cpp/verify/sample_batch.h"
#include "cpp/verify/verifier.h"
#include "cuda/verify/row_state.h"
#include "cuda/verify/step_buffer.h"
#include "cuda/verify/walk.h"

namespace forerun::cuda {

class CudaVerifier : public Verifier {
 public:
  // Enqueues everything on `stream`, after what makes the logits. The stream must outlive this.
  explicit CudaVerifier(const VerifierLimits& limits, cudaStream_t stream = nullptr);
  ~CudaVerifier() override;

  void Begin(ConstRows logits, std::span<const SampleRequest> requests) override;
  // The same with logits [num_rows, limits.vocab_size] of any type that kernels read.
  void Begin(const DeviceLogits& logits, int num_rows, std::span<const SampleRequest> requests);
  std::span<const Outcome> Finish() override;
  std::vector<TokenLogprob>& logprobs() override { return logprobs_; }
  void Top(ConstRows logits, int count, std::span<TopToken> out) override;

  // Of all steps: rows that were copied to the host and verified there.
  std::int64_t num_host_verified_rows() const { return num_host_verified_rows_; }

 private:
  struct EventDeleter {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };

  // What kernels write, in device memory.
  struct Work {
    // Null: to learn num_bytes.
    Work(const std::byte* memory, const VerifierLimits& limits);

    RowWorkspace rows;
    WalkRow* walk_rows;
    Mass* draft_sums;
    TokenId* emitted;
    WalkOutcome* outcomes;
    std::size_t num_bytes;
  };

  SampleArrays Upload();
  void Enqueue(const SampleArrays& arrays);
  void ReadOutcome(std::size_t i);
  void VerifyOnHost(std::size_t i);
  std::vector<float> DownloadRows(int first_row, int num_rows);

  const VerifierLimits limits_;
  const cudaStream_t stream_;
  const std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDeleter> done_;

  // Device memory: what was uploaded, and what kernels write.
  DeviceBuffer batch_memory_, work_memory_;
  // The host's: what is uploaded, what comes back, and rows of logits that come back.
  PinnedBuffer staging_, results_, host_rows_;
  const Work work_;  // in work_memory_

  // Of the step.
  DeviceLogits logits_;
  std::span<const SampleRequest> requests_;
  bool is_enqueued_ = false;

  // Kept for their memory.
  SampleBatch batch_;
  SamplerScratch scratch_;
  std::vector<Outcome> outcomes_;
  std::vector<TokenLogprob> logprobs_;
  std::int64_t num_host_verified_rows_ = 0;
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_CUDA_VERIFIER_H_
