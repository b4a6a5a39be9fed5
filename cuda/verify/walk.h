// From what is known of the rows of logits to what each request emits: Verify on the GPU.
//
// One block walks one request. A single thread takes the steps of Verify's recursion, on what the
// row kernels found out; the block comes in where a whole row is read: to draw from the tokens that
// rejected draft tokens leave, once where these were certain, and once for every node after which
// a drawn one was rejected. Masses are integers, so that the result has the bits of Verify.
//
// So beside what SampleRows reads, a request with a certain draft has one part of one row read once
// more, and with top_p or a top_k that was listed that whole row; one with a drawn draft has one
// row read once more, and with kBlock at worst every row. Of a row those groups of tokens are read
// that weigh anything.
#ifndef FORERUN_CUDA_VERIFY_WALK_H_
#define FORERUN_CUDA_VERIFY_WALK_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "cpp/verify/sample_batch.h"
#include "cuda/verify/row_state.h"
#include "forerun/types.h"

namespace forerun::cuda {

// What comes back of one request: the accepted nodes are the path to `last_node`.
struct WalkOutcome {
  std::int32_t last_node;  // -1: none was accepted
  TokenId token;           // after it; -1: its row failed
  std::int32_t status;     // SampleRow::status of the row that failed, or kWalkBroken + RowStatus
  TokenId broken_token;    // as in RowState
  float broken_logit;
};
inline constexpr std::int32_t kWalkBroken = -100;

// Scratch memory: of one row of logits, and of the node before it.
struct WalkRow {
  double weight, total;  // of what is left of the target after the node
  double token_weight;   // of the node's token after its parent; 0 if it repeats a sibling's
  std::int32_t first_child, next_sibling;  // nodes, or kNoNode
  std::int32_t child;                      // the one that is visited or will be
  std::int32_t is_whole;                   // no child has reduced the target
};

// All in device memory.
struct WalkArrays {
  SampleArrays batch;
  RowWorkspace rows;  // as SampleRows left it
  int num_drawn_rows;
  Mass* draft_sums;       // [num_drawn_rows], scratch: of each row of draft weights
  WalkRow* scratch;       // [num_rows]
  WalkOutcome* outcomes;  // [num_requests], those that do not sample are left alone
  // [num_rows]: the token that is emitted from a row that is sampled, -1: none. Other rows' are
  // left alone.
  TokenId* emitted;
};

// REQUIRES: as DeviceLogits of the rows kernels.
cudaError_t LaunchWalk(const DeviceLogits& logits, const WalkArrays& arrays, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_WALK_H_
