// How the attention of a pass's rows is dealt to blocks.
#ifndef FORERUN_CUDA_OPS_ATTENTION_PLAN_H_
#define FORERUN_CUDA_OPS_ATTENTION_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/kv/layout.h"
#include "cpp/ops/ops.h"
#include "cpp/ops/sequence_rows.h"
#include "cuda/ops/attention.h"

namespace forerun::cuda {

// What the items of several plans refer to.
struct AttentionTables {
  std::vector<std::int32_t> entries;  // of block tables and of tails

  void Clear();
  // Where a block table begins, which is appended where it is new. Plans ask in one order.
  std::int32_t OffsetOf(std::span<const BlockId> table);
  void StartPlan() { next_ = 0; }

 private:
  struct Table {
    std::span<const BlockId> blocks;
    std::int32_t begin;
  };
  std::vector<Table> tables_;
  std::size_t next_ = 0;
};

// The most that plans have.
struct AttentionPlanSize {
  std::int64_t num_items = 0, num_runs = 0;
  std::int64_t num_state_floats = 0;

  // Of kept passes, whose runs and split items are filled up.
  AttentionPlanSize Padded() const;
};

// The plan decides what is read and when, not a bit of the results.
class AttentionPlan {
 public:
  // Items are split into parts while there are fewer blocks than that.
  explicit AttentionPlan(std::int64_t enough_blocks) : enough_blocks_(enough_blocks) {}

  // Of passes within the limits.
  static AttentionPlanSize MostOf(const OpsLimits& limits, std::int64_t enough_blocks);

  // Appends to `tables`.
  void Set(std::span<const SequenceRows> sequences, const KvLayout& layout, int num_heads,
           AttentionTables& tables);

  // Fills runs and split items up to a power of 2 with such as do nothing: plans of passes that
  // are kept differ as little as may be.
  void Pad();

  // As many items as plans of so many rows have at most.
  std::int64_t MostItems(int num_rows) const;

  std::span<const AttentionItem> items() const { return items_; }
  std::span<const AttentionRun> runs() const { return runs_; }
  std::span<const std::int32_t> split_items() const { return split_items_; }
  int max_queries() const { return max_queries_; }
  // Of all states.
  std::int64_t num_state_floats() const { return num_state_floats_; }

 private:
  // The end of the rows from `begin` on that may share an item but for the number of their queries.
  int EndOfStretch(const SequenceRows& sequence, int begin);
  // What items of the stretch say of the tree that they see.
  void AddTail(const SequenceRows& sequence, int begin, AttentionItem& item,
               std::vector<std::int32_t>& tails);
  void AddItems(const AttentionItem& first);
  void AddRuns(const KvLayout& layout);

  std::int64_t enough_blocks_;
  std::vector<AttentionItem> items_;
  std::vector<AttentionRun> runs_;
  std::vector<std::int32_t> split_items_;
  int num_group_heads_ = 0;
  int max_queries_ = 0;
  std::int64_t num_state_floats_ = 0;

  // Of a stretch: the ends of its rows; by node of the tree whether a row sees it, then its number
  // among those that rows see, and how many nodes are before it on its path.
  std::vector<std::int32_t> ends_, seen_, levels_;
  std::vector<std::int32_t> next_;  // number, by level
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ATTENTION_PLAN_H_
