#include "cuda/ops/attention_plan.h"

#include <algorithm>

namespace forerun::cuda {
namespace {

// The most memory that states may take; with more, a block takes all of an item.
constexpr std::int64_t kMaxStateBytes = std::int64_t{64} << 20;

// How many rows come before the nodes of a tree.
int NumChained(const SequenceRows& sequence) {
  if (sequence.tree.parents.empty()) return sequence.num_rows;
  return std::clamp(sequence.tree.first_slot - sequence.num_context, 0, sequence.num_rows);
}

}  // namespace

void AttentionPlan::Set(std::span<const SequenceRows> sequences, const KvLayout& layout,
                        int num_heads, std::vector<std::int32_t>& tables,
                        std::vector<std::int32_t>& tails) {
  items_.clear();
  runs_.clear();
  split_items_.clear();
  num_group_heads_ = num_heads / layout.num_kv_heads;
  int most_queries = 0;
  for (const SequenceRows& sequence : sequences) {
    // A node of a tree is an item of its own.
    const int most_rows = std::max(NumChained(sequence), 1);
    most_queries = std::max(most_queries, most_rows * num_group_heads_);
  }
  max_queries_ = most_queries <= kFewQueries ? kFewQueries
                                             : MostQueries(layout.head_dim, layout.element_bytes);
  for (const SequenceRows& sequence : sequences) {
    const auto table = static_cast<std::int32_t>(tables.size());
    tables.insert(tables.end(), sequence.block_table.begin(), sequence.block_table.end());
    AttentionItem item = {};
    item.table = table;
    item.tail_position = kNoTail;
    const int num_chained = NumChained(sequence);
    item.first_row = sequence.row_begin;
    item.first_position = sequence.num_context;
    AddItems(item, num_chained);
    for (int i = num_chained; i < sequence.num_rows; ++i) {
      const int slot = sequence.num_context + i;
      item.first_row = sequence.row_begin + i;
      item.first_position = sequence.PositionOf(slot);
      item.tail_position = sequence.tree.first_slot;
      item.tail = static_cast<std::int32_t>(tails.size());
      const int length = item.first_position + 1 - item.tail_position;
      tails.resize(tails.size() + length);
      for (int s = slot, to = item.tail + length; s >= sequence.tree.first_slot;
           s = sequence.SlotBefore(s)) {
        tails[--to] = s;
      }
      AddItems(item, 1);
    }
  }
  AddRuns(layout);
}

void AttentionPlan::AddItems(const AttentionItem& first, int num_rows) {
  const int num_queries = num_rows * num_group_heads_;
  AttentionItem item = first;
  for (int begin = 0; begin < num_queries; begin += max_queries_) {
    item.first_query = begin;
    item.num_queries = std::min(max_queries_, num_queries - begin);
    const int last_row = (begin + item.num_queries - 1) / num_group_heads_;
    item.num_parts = (item.first_position + last_row) / kPartPositions + 1;
    items_.push_back(item);
  }
}

void AttentionPlan::AddRuns(const KvLayout& layout) {
  std::int64_t num_parts = 0;
  for (const AttentionItem& item : items_) {
    if (item.num_parts > 1) num_parts += item.num_parts;
  }
  const std::int64_t num_bytes = num_parts * layout.num_kv_heads *
                                 StateFloats(layout.head_dim, max_queries_) *
                                 std::int64_t{sizeof(float)};
  const bool splits =
      num_bytes <= kMaxStateBytes && std::ssize(items_) * layout.num_kv_heads < enough_blocks_;
  num_states_ = 0;
  for (int i = 0; i < std::ssize(items_); ++i) {
    AttentionItem& item = items_[i];
    item.first_state = -1;
    if (!splits || item.num_parts == 1) {
      runs_.push_back({i, 0, item.num_parts});
      continue;
    }
    item.first_state = num_states_;
    num_states_ += item.num_parts;
    split_items_.push_back(i);
    for (int part = 0; part < item.num_parts; ++part) runs_.push_back({i, part, 1});
  }
}

}  // namespace forerun::cuda
