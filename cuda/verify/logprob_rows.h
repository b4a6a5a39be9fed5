// Log-probabilities of tokens in rows of logits.
#ifndef FORERUN_CUDA_VERIFY_LOGPROB_ROWS_H_
#define FORERUN_CUDA_VERIFY_LOGPROB_ROWS_H_

#include <cuda_runtime.h>

#include "cpp/verify/sample_batch.h"
#include "cuda/verify/row_state.h"
#include "forerun/types.h"

namespace forerun::cuda {

// Why a row has no log-probabilities, as in RowState.
struct LogprobStatus {
  std::int32_t status;
  TokenId broken_token;
  float broken_logit;
};

// All in device memory.
struct LogprobArrays {
  SampleArrays batch;
  const TokenId* emitted;           // [rows]: what is emitted from a sampled row; -1: nothing
  const std::int32_t* first_entry;  // [rows], in entries; -1: the row has none
  LogprobStatus* statuses;          // [rows], written for rows that have entries
  TokenLogprob* entries;
};

// Writes the entries of each row that has some: of a scored row those of its scored token, of a
// sampled row those of the emitted token, as SampleRule orders them, from the raw logits. Reads a
// row twice, and with top tokens a few of its groups again. Overwrites workspace.groups.
//
// The exponentials of all tokens but the highest are added up as doubles, in an order that the
// schedule of the threads does not change: log-probabilities are those of AppendLogprobs, whose
// order is another one, within one float step.
cudaError_t LogprobRows(const DeviceLogits& logits, const LogprobArrays& arrays,
                        const RowWorkspace& workspace, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_LOGPROB_ROWS_H_
