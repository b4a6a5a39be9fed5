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
  const AttentionPlanSize plan = AttentionPlan::MostOf(limits, enough_blocks_).Padded();
  Parts parts(nullptr);
  for (int i = 0; i < 5; ++i) parts.Take<std::int32_t>(limits.max_rows);
  if (limits.num_heads > 0) {
    const std::int64_t of_sequence = NumBlocksFor(limits.max_model_len, limits.layout.block_size);
    parts.Take<std::int32_t>(std::min(limits.max_sequences * of_sequence, kMostTableEntries) +
                             std::int64_t{limits.max_rows} * kTailsOfRow);
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
  is_kept_ = data.is_kept;
  FORERUN_CHECK(!is_kept_ || HasAllWanted(), "a pass that is kept is one of wanted rows");
  host_tables_.Clear();
  for (const RowSet which : {RowSet::kAll, RowSet::kWanted}) {
    AttentionPlan& plan = plans_[static_cast<int>(which)].plan;
    const bool attends =
        cache() != nullptr && num_heads() > 0 && (which == RowSet::kAll || !HasAllWanted());
    plan.Set(attends ? sequences(which) : std::span<const SequenceRows>(),
             attends ? cache()->layout() : KvLayout{1, 1, 1, 1, 2}, std::max(num_heads(), 1),
             host_tables_);
    if (is_kept_ && attends) plan.Pad();
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
  const auto take = [&]<typename T>(std::span<const T> values, std::size_t count) -> const T* {
    const std::size_t begin = parts.num_bytes();
    const T* part = parts.Take<T>(count);
    if (filled != nullptr && !values.empty()) {
      std::memcpy(filled + begin, values.data(), values.size_bytes());
    }
    return part;
  };
  const auto take_all = [&]<typename T>(std::span<const T> values) {
    return take(values, values.size());
  };
  tokens_ = take_all(tokens());
  positions_ = take_all(positions());
  for (const RowIndices which : {RowIndices::kWanted, RowIndices::kSources, RowIndices::kSlots}) {
    indices_[static_cast<int>(which)] = take_all(indices(which));
  }
  for (DevicePlan& on_device : plans_) {
    const AttentionPlan& plan = on_device.plan;
    // After items of kept passes is room for as many as others of their shape may have.
    const bool is_padded = is_kept_ && !plan.items().empty();
    on_device.items =
        take(plan.items(), is_padded ? plan.MostItems(num_rows()) : plan.items().size());
    on_device.runs = take_all(plan.runs());
    on_device.split_items = take_all(plan.split_items());
  }
  // They alone are of any length, so nothing may come after them.
  entries_ = take_all(std::span<const std::int32_t>(host_tables_.entries));
  return parts.num_bytes();
}

PassShape DeviceRows::shape() const {
  FORERUN_CHECK(is_kept_, "the shape of another pass");
  const AttentionPlan& plan = PlanOf(RowSet::kAll).plan;
  return {.num_rows = num_rows(),
          .num_sources = static_cast<int>(indices(RowIndices::kSources).size()),
          .max_queries = plan.max_queries(),
          .num_runs = static_cast<int>(plan.runs().size()),
          .num_split_items = static_cast<int>(plan.split_items().size()),
          .uploaded = tokens_,
          .states = states_.data()};
}

const DeviceRows::DevicePlan& DeviceRows::PlanOf(RowSet which) const {
  return plans_[static_cast<int>(HasAllWanted() ? RowSet::kAll : which)];
}

void DeviceRows::SetAttention(RowSet which, AttentionTask& task) {
  FORERUN_CHECK(task.num_heads == num_heads(), "another number of heads than Begin's");
  const DevicePlan& on_device = PlanOf(which);
  task.items = on_device.items;
  task.max_queries = on_device.plan.max_queries();
  task.runs = on_device.runs;
  task.num_runs = static_cast<int>(on_device.plan.runs().size());
  task.split_items = on_device.split_items;
  task.num_split_items = static_cast<int>(on_device.plan.split_items().size());
  task.block_tables = entries_;
  task.tails = entries_;
  task.states = reinterpret_cast<float*>(states_.data());
}

}  // namespace forerun::cuda
