// How the attention of a pass's rows is dealt to blocks.
#ifndef FORERUN_CUDA_OPS_ATTENTION_PLAN_H_
#define FORERUN_CUDA_OPS_ATTENTION_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/kv/layout.h"
#include "cpp/ops/sequence_rows.h"
#include "cuda/ops/attention.h"

namespace forerun::cuda {

// The plan decides what is read and when, not a bit of the results.
class AttentionPlan {
 public:
  // Items are split into parts while there are fewer blocks than that.
  explicit AttentionPlan(std::int64_t enough_blocks) : enough_blocks_(enough_blocks) {}

  // Of sequences whose block tables and tails follow each other in `tables` and `tails`, to which
  // they are appended.
  void Set(std::span<const SequenceRows> sequences, const KvLayout& layout, int num_heads,
           std::vector<std::int32_t>& tables, std::vector<std::int32_t>& tails);

  std::span<const AttentionItem> items() const { return items_; }
  std::span<const AttentionRun> runs() const { return runs_; }
  std::span<const std::int32_t> split_items() const { return split_items_; }
  int max_queries() const { return max_queries_; }
  // That split items need, of one KV head.
  int num_states() const { return num_states_; }

 private:
  void AddItems(const AttentionItem& first, int num_rows);
  void AddRuns(const KvLayout& layout);

  std::int64_t enough_blocks_;
  std::vector<AttentionItem> items_;
  std::vector<AttentionRun> runs_;
  std::vector<std::int32_t> split_items_;
  int num_group_heads_ = 0;
  int max_queries_ = 0;
  int num_states_ = 0;
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ATTENTION_PLAN_H_
