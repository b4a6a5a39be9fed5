// From rows of logits to a token per row, and to the kept tokens' cut and mass.
#ifndef FORERUN_CUDA_VERIFY_SAMPLE_ROWS_H_
#define FORERUN_CUDA_VERIFY_SAMPLE_ROWS_H_

#include <cuda_runtime.h>

#include "cpp/verify/sample_batch.h"
#include "cuda/verify/row_state.h"

namespace forerun::cuda {

// Writes workspace.states[row] for each row of the batch from which a token is sampled: what
// SampleToken and KeepTokens (cpp/sampling) say of its edited logits, bit for bit. Enqueues two
// kernels, or four where a rule has top_p or a row needs its mass: `needs_mass`.
//
// How often a row is read from memory, what was kept of its groups and a tile or two aside:
//   1      greedy; coupled; coupled with min_p, unless the winner of a tile is cut off
//   <= 2   a row that needs its mass; coupled with top_p, where the winner is clearly kept
//   <= 3   with top_k or top_p; 1 with a top_k up to about 500
//   <= 10  if more than 1024 tokens compete for a cut and differ in every digit of their logits
// Tokens that weigh nothing (23 temperatures below the highest) are read once, up to their group.
cudaError_t SampleRows(const DeviceLogits& logits, const SampleArrays& arrays, bool needs_mass,
                       const RowWorkspace& workspace, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_SAMPLE_ROWS_H_
