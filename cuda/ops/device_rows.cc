#include "cuda/ops/device_rows.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <span>

#include "cpp/kv/slot_map.h"
#include "cpp/ops/ops.h"
#include "cpp/util/check.h"
#include "cuda/check_cuda.h"
#include "cuda/ops/row_ops.h"

namespace forerun::cuda {

namespace {

// Block tables that are larger together make room for themselves.
constexpr std::int64_t kMostTableEntries = std::int64_t{1} << 20;
// What a row of a tree takes in the tails: its part of a stretch that sees kMostTailSlots.
constexpr int kTailsOfRow = 5 * kMostTailSlots;

}  // namespace

void DeviceRows::Reserve(const OpsLimits& limits) {
  ForwardRows::Reserve(limits.max_rows);
  const AttentionPlanSize plan = AttentionPlan::MostOf(limits, enough_blocks_);
  Parts parts(nullptr);
  for (int i = 0; i < 5; ++i) parts.Take<std::int32_t>(limits.max_rows);
  if (limits.num_heads > 0) {
    const std::int64_t of_sequence = NumBlocksFor(limits.max_model_len, limits.layout.block_size);
    parts.Take<std::int32_t>(std::min(limits.max_sequences * of_sequence, kMostTableEntries));
    parts.Take<std::int32_t>(std::int64_t{limits.max_rows} * kTailsOfRow);
  }
  for (std::size_t i = 0; i < std::size(plans_); ++i) {
    parts.Take<AttentionItem>(plan.num_items);
    parts.Take<AttentionRun>(plan.num_runs);
    parts.Take<std::int32_t>(plan.num_items);
  }
  upload_.Reserve(parts.num_bytes());
  states_.Reserve(sizeof(float) * plan.num_state_floats);
}

void DeviceRows::Upload(const ForwardData& data) {
  Set(data);
  host_tables_.Clear();
  for (const RowSet which : {RowSet::kAll, RowSet::kWanted}) {
    AttentionPlan& plan = plans_[static_cast<int>(which)].plan;
    const bool attends = cache() != nullptr && num_heads() > 0;
    plan.Set(attends ? sequences(which) : std::span<const SequenceRows>(),
             attends ? cache()->layout() : KvLayout{1, 1, 1, 1, 2}, std::max(num_heads(), 1),
             host_tables_);
    states_.Grow(sizeof(float) * plan.num_state_floats());
  }
  const std::size_t num_bytes = TakeParts(nullptr, nullptr);
  TakeParts(nullptr, upload_.Start(num_bytes));
  TakeParts(upload_.Send(), nullptr);
  if (data.device_tokens.top != nullptr) {
    FORERUN_CHECK(std::ssize(data.sources) == num_rows(), "a source for every row");
    CheckCuda(TakeTokens(data.device_tokens, device_indices(RowIndices::kSources), num_rows(),
                         const_cast<std::int32_t*>(tokens_), upload_.stream()),
              "the tokens of a forward pass");
  }
}

std::size_t DeviceRows::TakeParts(const std::byte* memory, std::byte* filled) {
  Parts parts(memory);
  const auto take = [&]<typename T>(std::span<const T> values) -> const T* {
    const std::size_t begin = parts.num_bytes();
    const T* part = parts.Take<T>(values.size());
    if (filled != nullptr && !values.empty()) {
      std::memcpy(filled + begin, values.data(), values.size_bytes());
    }
    return part;
  };
  const auto of = [](const auto& vector) { return std::span(vector.data(), vector.size()); };
  tokens_ = take(tokens());
  positions_ = take(positions());
  for (const RowIndices which : {RowIndices::kWanted, RowIndices::kSources, RowIndices::kSlots}) {
    indices_[static_cast<int>(which)] = take(indices(which));
  }
  tables_ = take(std::span<const std::int32_t>(of(host_tables_.blocks)));
  tails_ = take(std::span<const std::int32_t>(of(host_tables_.tails)));
  for (DevicePlan& on_device : plans_) {
    on_device.items = take(on_device.plan.items());
    on_device.runs = take(on_device.plan.runs());
    on_device.split_items = take(on_device.plan.split_items());
  }
  return parts.num_bytes();
}

void DeviceRows::SetAttention(RowSet which, AttentionTask& task) {
  FORERUN_CHECK(task.num_heads == num_heads(), "another number of heads than Begin's");
  const DevicePlan& on_device = plans_[static_cast<int>(which)];
  task.items = on_device.items;
  task.max_queries = on_device.plan.max_queries();
  task.runs = on_device.runs;
  task.num_runs = static_cast<int>(on_device.plan.runs().size());
  task.split_items = on_device.split_items;
  task.num_split_items = static_cast<int>(on_device.plan.split_items().size());
  task.block_tables = tables_;
  task.tails = tails_;
  task.states = reinterpret_cast<float*>(states_.data());
}

}  // namespace forerun::cuda
