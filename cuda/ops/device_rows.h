// A forward pass's rows where kernels read them.
#ifndef FORERUN_CUDA_OPS_DEVICE_ROWS_H_
#define FORERUN_CUDA_OPS_DEVICE_ROWS_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpp/ops/forward_rows.h"
#include "cpp/ops/ops.h"
#include "cuda/ops/attention.h"
#include "cuda/ops/attention_plan.h"
#include "cuda/verify/staged_upload.h"
#include "cuda/verify/step_buffer.h"

namespace forerun::cuda {

// What the launches of a pass depend on beside the operations: sizes, and where things lie.
struct PassShape {
  int num_rows = 0, num_sources = 0;
  int max_queries = 0, num_runs = 0, num_split_items = 0;
  const void* uploaded = nullptr;
  const void* states = nullptr;

  bool operator==(const PassShape&) const = default;
};

// On the GPU of UseGpu. What it returns as arrays lies there.
class DeviceRows : public ForwardRows {
 public:
  DeviceRows(cudaStream_t stream, std::int64_t enough_blocks)
      : enough_blocks_(enough_blocks),
        upload_(stream),
        plans_{DevicePlan(enough_blocks), DevicePlan(enough_blocks)} {}

  // Passes within the limits allocate nothing on the GPU and nothing pinned, but for rare ones:
  // more sequences of wanted rows than of all rows, or trees that are deep and wide.
  void Reserve(const OpsLimits& limits);

  // One upload. Throws as ForwardRows::Set.
  void Upload(const ForwardData& data);

  const std::int32_t* device_tokens() const { return tokens_; }
  const std::int32_t* device_positions() const { return positions_; }
  const std::int32_t* device_indices(RowIndices which) const {
    return indices_[static_cast<int>(which)];
  }
  // Of a pass that is kept.
  PassShape shape() const;
  // Sets what an attention task has of the rows and of the plan. The states are for num_kv_heads.
  void SetAttention(RowSet which, AttentionTask& task);

 private:
  struct DevicePlan {
    explicit DevicePlan(std::int64_t enough_blocks) : plan(enough_blocks) {}

    AttentionPlan plan;
    const AttentionItem* items = nullptr;
    const AttentionRun* runs = nullptr;
    const std::int32_t* split_items = nullptr;
  };

  // Takes every array's part of the memory in which `upload` lies; with `filled`, copies it there.
  std::size_t TakeParts(const std::byte* memory, std::byte* filled);

  // The wanted rows have one of their own where they are not all.
  const DevicePlan& PlanOf(RowSet which) const;

  const std::int64_t enough_blocks_;
  bool is_kept_ = false;
  StagedUpload upload_;
  const std::int32_t* tokens_ = nullptr;
  const std::int32_t* positions_ = nullptr;
  const std::int32_t* indices_[3] = {};
  const std::int32_t* entries_ = nullptr;
  DevicePlan plans_[2];
  AttentionTables host_tables_;
  DeviceBuffer states_{0};
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_DEVICE_ROWS_H_
