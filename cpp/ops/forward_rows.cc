#include "cpp/ops/forward_rows.h"

#include "cpp/kv/slot_map.h"
#include "cpp/ops/kv_cache.h"
#include "cpp/util/check.h"

namespace forerun {

void ForwardRows::Reserve(int max_rows) {
  positions_.reserve(max_rows);
  slots_.reserve(max_rows);
  wanted_sequences_.reserve(max_rows);
}

void ForwardRows::Set(const ForwardData& data) {
  data_ = data;
  positions_.clear();
  slots_.clear();
  wanted_sequences_.clear();
  int last = -1;
  for (std::int32_t row : data.wanted) {
    FORERUN_CHECK(row > last && row < num_rows(), "wanted rows must ascend");
    last = row;
  }
  if (data.cache == nullptr) return;
  CheckSequences(data.sequences, *data.cache, num_rows());
  const int block_size = data.cache->layout().block_size;
  for (const SequenceRows& sequence : data.sequences) {
    FORERUN_CHECK(sequence.row_begin == std::ssize(positions_), "sequences must be in order");
    for (int i = 0; i < sequence.num_rows; ++i) {
      const int slot = sequence.num_context + i;
      positions_.push_back(sequence.PositionOf(slot));
      slots_.push_back(
          static_cast<std::int32_t>(CacheSlot(sequence.block_table, slot, block_size)));
    }
  }
  FORERUN_CHECK(std::ssize(positions_) == num_rows(), "sequences must cover the rows");
  SelectSequences();
}

std::span<const std::int32_t> ForwardRows::indices(RowIndices which) const {
  switch (which) {
    case RowIndices::kWanted:
      return data_.wanted;
    case RowIndices::kSources:
      return data_.sources;
    case RowIndices::kSlots:
      break;
  }
  return slots_;
}

void ForwardRows::SelectSequences() {
  auto next = data_.wanted.begin();
  for (const SequenceRows& sequence : data_.sequences) {
    const int end = sequence.row_begin + sequence.num_rows;
    // Every run of neighbours stays together, as a sequence with more context.
    while (next != data_.wanted.end() && *next < end) {
      const int first = *next;
      int count = 0;
      while (next != data_.wanted.end() && *next < end && *next == first + count) {
        ++next;
        ++count;
      }
      const int row_begin = static_cast<int>(next - data_.wanted.begin()) - count;
      wanted_sequences_.push_back({row_begin, count,
                                   sequence.num_context + first - sequence.row_begin,
                                   sequence.block_table, sequence.tree});
    }
  }
}

}  // namespace forerun
