// Draws draft tokens from a drafter's logits, and keeps what they were drawn from.
#ifndef FORERUN_CUDA_VERIFY_SAMPLE_DRAFTS_H_
#define FORERUN_CUDA_VERIFY_SAMPLE_DRAFTS_H_

#include <cuda_runtime.h>

#include "cpp/verify/sample_batch.h"
#include "cuda/verify/row_state.h"

namespace forerun::cuda {

// After SampleRows of a batch whose rows are a drafter's and have needs_mass: for each sampled
// row, weights [rows, vocab_size] = what FillDraftRow makes of its edited logits, and
// drawn [rows] = the first child that AppendDrawnChild draws from it, as node SampleRow::depth of
// the draft, with its probability; token -1 where the row is broken. Reads a row once, and the
// weights once or twice.
cudaError_t SampleDrafts(const DeviceLogits& logits, const SampleArrays& arrays,
                         const RowWorkspace& workspace, float* weights, TopToken* drawn,
                         cudaStream_t stream);

// The weights of SampleDrafts as those of the target's tokens: of row r, sampled, the weight of
// token i goes to scattered[drawn_row, ids[i]], with SampleRule::drawn_row. Others are 0 there.
struct ScatteredWeights {
  const float* weights;
  const TokenId* ids;  // [vocab_size]; null: token i is token i
  int num_tokens;      // the target's
  float* scattered;
};
cudaError_t ScatterDraftWeights(const SampleArrays& arrays, const ScatteredWeights& weights,
                                cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_SAMPLE_DRAFTS_H_
