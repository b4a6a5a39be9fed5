// The most probable tokens of rows of logits, for drafters.
#ifndef FORERUN_CUDA_VERIFY_TOP_ROWS_H_
#define FORERUN_CUDA_VERIFY_TOP_ROWS_H_

#include <cuda_runtime.h>

#include "cpp/verify/sample_batch.h"
#include "cpp/verify/verifier.h"
#include "cuda/verify/row_state.h"

namespace forerun::cuda {

inline constexpr int kMaxTopTokens = 1024;

// The batch whose arrays TopRows reads: the same for all rows.
SampleBatch TopBatch(int max_rows, int vocab_size);

// Writes Verifier::Top of the first arrays.num_rows rows to `out` [num_rows, count]. `arrays` are
// those of TopBatch. A row is read at most twice, but for a few groups. REQUIRES: 1 <= count <=
// kMaxTopTokens.
cudaError_t TopRows(const DeviceLogits& logits, const SampleArrays& arrays, int count,
                    const RowWorkspace& workspace, TopToken* out, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_TOP_ROWS_H_
