// Verification on the GPU of UseGpu: the Verifier of the CUDA backend.
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
#include "cuda/verify/draft_draws.h"
#include "cuda/verify/logprob_rows.h"
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
  const TopToken* StartTop(ConstRows logits, int count, std::size_t begin) override;
  // The same with logits [num_rows, limits.vocab_size] of any type that kernels read.
  const TopToken* StartTop(const DeviceLogits& logits, int num_rows, int count, std::size_t begin);
  const float* StartDraws(ConstRows logits, std::span<const Draw> draws, const TokenId* ids,
                          std::size_t begin) override;
  void FinishTop(std::span<TopToken> out) override;

  // Of all steps: rows that were copied to the host and verified there.
  std::int64_t num_host_verified_rows() const { return num_host_verified_rows_; }

 private:
  struct EventDeleter {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };

  // What comes back of a step, in device memory or on the host.
  struct Results {
    Results() = default;
    // Null: to learn num_bytes. Without entries, `statuses` do not come back.
    Results(const void* memory, int num_requests, int num_rows, std::size_t num_entries);

    WalkOutcome* outcomes = nullptr;    // [num_requests]
    LogprobStatus* statuses = nullptr;  // [num_rows]
    TokenLogprob* entries = nullptr;    // [num_entries]
    std::size_t num_bytes = 0;
  };

  // What kernels write, in device memory.
  struct Work {
    // Null: to learn num_bytes.
    Work(const std::byte* memory, const VerifierLimits& limits);

    RowWorkspace rows;
    WalkRow* walk_rows;
    Mass* draft_sums;
    TokenId* emitted;
    std::byte* results;
    std::size_t num_bytes;
  };

  static std::size_t MaxResultBytes(const VerifierLimits& limits);
  void FindFirstEntries();
  SampleArrays Upload();
  void Enqueue(const SampleArrays& arrays);
  void ReadOutcome(std::size_t i);
  void ReadVerdict(std::size_t i, Outcome& outcome) const;
  bool AppendEntries(int row, int per_token, Outcome& outcome);
  void VerifyOnHost(std::size_t i);
  std::vector<float> DownloadRows(int first_row, int num_rows);
  void UploadTopBatch();

  const VerifierLimits limits_;
  const cudaStream_t stream_;
  const std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDeleter> done_;

  // Device memory: what was uploaded, and what kernels write.
  DeviceBuffer batch_memory_, work_memory_;
  // The host's: what is uploaded, what comes back, and rows of logits that come back.
  PinnedBuffer staging_, result_memory_, host_rows_;
  const Work work_;  // in work_memory_

  // Of StartTop: its batch, in top_memory_, and what it finds.
  SampleArrays top_batch_ = {};
  DeviceBuffer top_memory_, top_tokens_;
  PinnedBuffer top_results_;
  DraftDraws draws_;

  // Of the step.
  DeviceLogits logits_;
  std::span<const SampleRequest> requests_;
  bool is_enqueued_ = false;
  std::vector<std::int32_t> first_entry_;  // [rows]: of log-probabilities; -1: none
  std::size_t num_entries_ = 0;
  const std::int32_t* device_first_entry_ = nullptr;
  Results results_;  // in result_memory_

  // Kept for their memory.
  SampleBatch batch_;
  SamplerScratch scratch_;
  std::vector<Outcome> outcomes_;
  std::vector<TokenLogprob> logprobs_;
  std::int64_t num_host_verified_rows_ = 0;
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_CUDA_VERIFIER_H_
