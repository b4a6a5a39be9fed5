// Draws draft tokens from a drafter's logits, and keeps what they were drawn from.
#ifndef FORERUN_CUDA_VERIFY_SAMPLE_DRAFTS_H_
#define FORERUN_CUDA_VERIFY_SAMPLE_DRAFTS_H_

#include <cuda_runtime.h>

#include "cpp/verify/sample_batch.h"
#include "cuda/verify/row_state.h"

namespace forerun::cuda {

// A child of a row's node: drawn with this probability.
struct DrawnToken {
  TokenId token;  // -1: the row is broken
  float probability;
};

// After SampleRows of a batch whose rows are a drafter's and have needs_mass: for each sampled
// row, weights [rows, vocab_size] = what FillDraftRow makes of its edited logits, and
// drawn [rows] = the first child that AppendDrawnChild draws from it, as node SampleRow::depth of
// the draft. Reads a row once, and the weights once or twice.
cudaError_t SampleDrafts(const DeviceLogits& logits, const SampleArrays& arrays,
                         const RowWorkspace& workspace, float* weights, DrawnToken* drawn,
                         cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_SAMPLE_DRAFTS_H_
