// A planted error: attention that masks a tree by slot.
#ifndef FORERUN_TESTS_CUDA_OPS_SLOT_MASK_H_
#define FORERUN_TESTS_CUDA_OPS_SLOT_MASK_H_

#include <cuda_runtime.h>

#include "cuda/ops/attention.h"

namespace forerun::cuda {

// As Attend, but that keys and values of a tree are taken in the order of their slots, with a
// weight of 0 for those that are not on a row's path. It is what one would write first, and right
// to within rounding; but what else is in the tree decides which values are added up together.
// REQUIRES: items of one part without states, heads of at most 64 channels in bfloat16, and at most
// kFewQueries queries.
cudaError_t AttendBySlot(const AttentionTask& task, const KvLayer& layer);

}  // namespace forerun::cuda

#endif  // FORERUN_TESTS_CUDA_OPS_SLOT_MASK_H_
