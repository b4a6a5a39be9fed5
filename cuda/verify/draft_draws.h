// Draft tokens that are drawn on the GPU, and the weights that they were drawn from.
#ifndef FORERUN_CUDA_VERIFY_DRAFT_DRAWS_H_
#define FORERUN_CUDA_VERIFY_DRAFT_DRAWS_H_

#include <cuda_runtime.h>

#include <span>

#include "cpp/verify/sample_batch.h"
#include "cpp/verify/verifier.h"
#include "cuda/verify/row_state.h"
#include "cuda/verify/staged_upload.h"
#include "cuda/verify/step_buffer.h"

namespace forerun::cuda {

// Of a drafter's verifier with these limits, on the GPU of UseGpu.
class DraftDraws {
 public:
  DraftDraws(const VerifierLimits& limits, cudaStream_t stream);

  // As Verifier::StartDraws. `found` are the first tokens of these rows.
  const float* Start(const DeviceLogits& logits, std::span<const Draw> draws, const TokenId* ids,
                     const RowWorkspace& workspace, TopToken* found);

 private:
  const VerifierLimits limits_;
  const cudaStream_t stream_;
  StagedUpload upload_;
  DeviceBuffer row_weights_;  // [max_rows, vocab_size], of one level of drafts
  DeviceBuffer weights_;      // [max_drawn_rows, drawn_vocab_size]
  SampleBatch batch_;         // kept for its memory
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_DRAFT_DRAWS_H_
