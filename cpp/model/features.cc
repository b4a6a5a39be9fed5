#include "cpp/model/features.h"

#include <limits>
#include <string>
#include <utility>

#include "cpp/util/check.h"

namespace forerun {

FeatureStore::FeatureStore(FeatureSpec spec, int hidden_size, int num_blocks, int block_size,
                           Ops& ops)
    : spec_(std::move(spec)), hidden_size_(hidden_size), block_size_(block_size), ops_(ops) {
  ReserveBlocks(num_blocks);
}

void FeatureStore::ReserveBlocks(int num_blocks) {
  const std::int64_t num_slots = std::int64_t{num_blocks} * block_size_;
  FORERUN_CHECK(num_slots <= std::numeric_limits<std::int32_t>::max(), std::to_string(num_slots));
  memory_ = {};
  memory_ = AlignedBuffer(ops_.memory(),
                          static_cast<std::size_t>(num_slots) * spec_.num_bytes(hidden_size_));
  rows_ = {memory_.as<float>(), static_cast<int>(num_slots), spec_.width(hidden_size_)};
}

void FeatureStore::KeepResidual(int num_layers, ConstRows hidden, const ForwardRows& rows) {
  for (int i = 0; i < std::ssize(spec_.aux_layers); ++i) {
    if (spec_.aux_layers[i] != num_layers) continue;
    ops_.ScatterRows(hidden, rows, RowIndices::kSlots,
                     rows_.Columns(i * hidden_size_, hidden_size_));
  }
}

void FeatureStore::KeepFinal(ConstRows normed, const ForwardRows& rows) {
  const int begin = static_cast<int>(spec_.aux_layers.size()) * hidden_size_;
  ops_.ScatterRows(normed, rows, RowIndices::kSlots, rows_.Columns(begin, hidden_size_));
}

}  // namespace forerun
