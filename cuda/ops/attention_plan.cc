#include "cuda/ops/attention_plan.h"

#include <algorithm>
#include <bit>

namespace forerun::cuda {
namespace {

// The most memory that states may take; a block takes all of an item for which there is no more.
constexpr std::int64_t kMostStateFloats = std::int64_t{16} << 20;
// An item of so few parts is not worth a launch that joins states.
constexpr int kMostUnsplitParts = 4;

// Of a padded plan.
constexpr std::int64_t kLeastRuns = 8;

constexpr std::int32_t kUnseen = -1, kSeen = 0;

// A tree that does not branch is a chain.
SequenceRows WithoutChain(SequenceRows sequence) {
  TreeSlots& tree = sequence.tree;
  const int num_nodes = sequence.num_context + sequence.num_rows - tree.first_slot;
  int node = 0;
  while (node < std::min(num_nodes, static_cast<int>(tree.parents.size())) &&
         tree.parents[node] == node - 1) {
    ++node;
  }
  if (node >= num_nodes) tree = {};
  return sequence;
}

// With as few queries as items may have room for.
std::int64_t ItemsOfRow(std::int64_t num_group_heads) {
  return (num_group_heads + kFewQueries - 1) / kFewQueries;
}

bool IsNode(const SequenceRows& sequence, int slot) {
  return !sequence.tree.parents.empty() && slot >= sequence.tree.first_slot;
}

}  // namespace

void AttentionTables::Clear() {
  entries.clear();
  tables_.clear();
  next_ = 0;
}

std::int32_t AttentionTables::OffsetOf(std::span<const BlockId> table) {
  for (; next_ < tables_.size(); ++next_) {
    const Table& known = tables_[next_];
    if (known.blocks.data() == table.data() && known.blocks.size() == table.size()) {
      return known.begin;
    }
  }
  const auto begin = static_cast<std::int32_t>(entries.size());
  entries.insert(entries.end(), table.begin(), table.end());
  tables_.push_back({table, begin});
  return begin;
}

AttentionPlanSize AttentionPlanSize::Padded() const {
  const auto up = [](std::int64_t count) {
    return std::max<std::int64_t>(
        kLeastRuns, static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(count))));
  };
  return {up(num_items), up(num_runs), num_state_floats};
}

AttentionPlanSize AttentionPlan::MostOf(const OpsLimits& limits, std::int64_t enough_blocks) {
  const KvLayout& layout = limits.layout;
  if (limits.num_heads == 0) return {};
  const std::int64_t max_rows = limits.max_rows, num_kv_heads = layout.num_kv_heads;
  const std::int64_t num_group_heads = limits.num_heads / num_kv_heads;
  // Items of one row.
  AttentionPlanSize most;
  most.num_items = max_rows * ItemsOfRow(num_group_heads);
  most.num_runs = most.num_items;
  std::int64_t most_parts = 0;
  for (const int end : {4096, 8192, limits.max_model_len}) {
    const int least = std::min(end, limits.max_model_len);
    most_parts = std::max<std::int64_t>(most_parts, (least - 1) / PartPositions(least) + 1);
  }
  if (most_parts <= kMostUnsplitParts) return most;
  const std::int64_t num_split = std::min(most.num_items, enough_blocks / num_kv_heads);
  const std::int64_t num_queries = std::min(
      max_rows * num_group_heads, num_split * MostQueries(layout.head_dim, layout.element_bytes));
  const std::int64_t floats_of_query = num_kv_heads * StateFloats(layout.head_dim, 1);
  most.num_runs += std::min(num_split * most_parts, kMostStateFloats / floats_of_query);
  most.num_state_floats = std::min(num_queries * most_parts * floats_of_query, kMostStateFloats);
  return most;
}

void AttentionPlan::Set(std::span<const SequenceRows> sequences, const KvLayout& layout,
                        int num_heads, AttentionTables& tables) {
  items_.clear();
  runs_.clear();
  split_items_.clear();
  tables.StartPlan();
  num_group_heads_ = num_heads / layout.num_kv_heads;
  int most_rows = 0;
  for (const SequenceRows& sequence : sequences) {
    most_rows = std::max(most_rows, sequence.num_rows);
  }
  max_queries_ = most_rows * num_group_heads_ <= kFewQueries
                     ? kFewQueries
                     : MostQueries(layout.head_dim, layout.element_bytes);
  for (const SequenceRows& given : sequences) {
    const SequenceRows sequence = WithoutChain(given);
    const std::int32_t table = tables.OffsetOf(sequence.block_table);
    for (int begin = 0; begin < sequence.num_rows;) {
      const int end = EndOfStretch(sequence, begin);
      AttentionItem item = {};
      item.first_row = sequence.row_begin + begin;
      item.table = table;
      item.first_end = ends_[0];
      item.part_positions = PartPositions(ends_[0]);
      item.tail_position = kNoTail;
      if (IsNode(sequence, sequence.num_context + end - 1)) {
        AddTail(sequence, begin, item, tables.entries);
      }
      AddItems(item);
      begin = end;
    }
  }
  AddRuns(layout);
}

std::int64_t AttentionPlan::MostItems(int num_rows) const {
  return num_rows * ItemsOfRow(num_group_heads_);
}

void AttentionPlan::Pad() {
  const AttentionPlanSize padded =
      AttentionPlanSize{std::ssize(split_items_), std::ssize(runs_), 0}.Padded();
  runs_.resize(padded.num_runs, kEmptyRun);
  if (!split_items_.empty()) split_items_.resize(padded.num_items, kNoItem);
}

int AttentionPlan::EndOfStretch(const SequenceRows& sequence, int begin) {
  const int first_slot = sequence.tree.first_slot;
  ends_.clear();
  seen_.assign(sequence.tree.parents.size(), kUnseen);
  int num_seen = 0;
  int row = begin;
  for (; row < sequence.num_rows; ++row) {
    const int slot = sequence.num_context + row;
    const int end = sequence.PositionOf(slot) + 1;
    if (row > begin && PartPositions(end) != PartPositions(ends_[0])) break;
    if (IsNode(sequence, slot)) {
      const auto for_new = [&](auto visit) {
        for (int s = slot; s >= first_slot && seen_[s - first_slot] == kUnseen;
             s = sequence.SlotBefore(s)) {
          visit(s - first_slot);
        }
      };
      int num_new = 0;
      for_new([&](int) { ++num_new; });
      // One row's path always fits: it has a slot for each position.
      if (row > begin && num_seen + num_new > kMostTailSlots) break;
      for_new([&](int node) { seen_[node] = kSeen; });
      num_seen += num_new;
    }
    ends_.push_back(end);
  }
  return row;
}

void AttentionPlan::AddTail(const SequenceRows& sequence, int begin, AttentionItem& item,
                            std::vector<std::int32_t>& tails) {
  const std::span<const std::int32_t> parents = sequence.tree.parents;
  const int first_slot = sequence.tree.first_slot;
  item.tail_position = first_slot;
  item.tail = static_cast<std::int32_t>(tails.size());
  item.num_rows = static_cast<std::int32_t>(ends_.size());
  item.num_levels = std::ranges::max(ends_) - first_slot;
  tails.insert(tails.end(), ends_.begin(), ends_.end());
  const std::size_t levels = tails.size();
  tails.resize(levels + item.num_levels + 1);
  // Nodes come after their parents.
  levels_.assign(parents.size(), 0);
  for (std::size_t node = 0; node < parents.size(); ++node) {
    if (parents[node] >= 0) levels_[node] = levels_[parents[node]] + 1;
    if (seen_[node] != kUnseen) ++tails[levels + levels_[node] + 1];
  }
  for (int i = 0; i < item.num_levels; ++i) tails[levels + i + 1] += tails[levels + i];
  item.num_tail_slots = tails.back();
  next_.assign(tails.begin() + static_cast<std::ptrdiff_t>(levels), tails.end());
  const std::size_t slots = tails.size();
  const std::size_t paths = slots + 2 * static_cast<std::size_t>(item.num_tail_slots);
  tails.resize(paths);
  tails.resize(paths + ends_.size() * item.num_levels, -1);
  for (std::size_t node = 0; node < parents.size(); ++node) {
    if (seen_[node] == kUnseen) continue;
    seen_[node] = next_[levels_[node]]++;
    tails[slots + seen_[node]] = first_slot + static_cast<std::int32_t>(node);
    tails[slots + item.num_tail_slots + seen_[node]] = first_slot + levels_[node];
  }
  for (std::size_t row = 0; row < ends_.size(); ++row) {
    const int slot = sequence.num_context + begin + static_cast<int>(row);
    for (int s = slot; s >= first_slot; s = sequence.SlotBefore(s)) {
      const int node = s - first_slot;
      tails[paths + row * item.num_levels + levels_[node]] = seen_[node];
    }
  }
}

void AttentionPlan::AddItems(const AttentionItem& first) {
  const int num_queries = static_cast<int>(ends_.size()) * num_group_heads_;
  AttentionItem item = first;
  for (int begin = 0; begin < num_queries; begin += max_queries_) {
    item.first_query = begin;
    item.num_queries = std::min(max_queries_, num_queries - begin);
    const auto end_of_first = ends_.begin() + begin / num_group_heads_;
    const auto after_last = ends_.begin() + (begin + item.num_queries - 1) / num_group_heads_ + 1;
    const auto [least, most] = std::minmax_element(end_of_first, after_last);
    item.least_end = *least;
    item.most_end = *most;
    item.num_parts = (item.most_end - 1) / item.part_positions + 1;
    items_.push_back(item);
  }
}

void AttentionPlan::AddRuns(const KvLayout& layout) {
  const bool wants_blocks = std::ssize(items_) * layout.num_kv_heads < enough_blocks_;
  num_state_floats_ = 0;
  for (int i = 0; i < std::ssize(items_); ++i) {
    AttentionItem& item = items_[i];
    const std::int64_t num_floats =
        item.num_parts * layout.num_kv_heads * StateFloats(layout.head_dim, item.num_queries);
    item.first_state = -1;
    if (!wants_blocks || item.num_parts <= kMostUnsplitParts ||
        num_state_floats_ + num_floats > kMostStateFloats) {
      runs_.push_back({i, 0, item.num_parts});
      continue;
    }
    item.first_state = static_cast<std::int32_t>(num_state_floats_);
    num_state_floats_ += num_floats;
    split_items_.push_back(i);
    for (int part = 0; part < item.num_parts; ++part) runs_.push_back({i, part, 1});
  }
}

}  // namespace forerun::cuda
