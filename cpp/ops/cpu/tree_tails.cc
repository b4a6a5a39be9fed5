#include "cpp/ops/cpu/tree_tails.h"

#include <algorithm>

#include "cpp/kv/slot_map.h"

namespace forerun {
namespace {

constexpr std::int64_t kNothing = -1;

}  // namespace

void TreeTails::Clear() {
  tails_.clear();
  sources_.clear();
}

int TreeTails::Add(const SequenceRows& sequence, int slot, int block_size) {
  const int begin = sequence.tree.first_slot / kLanes * kLanes;
  const int end = sequence.PositionOf(slot) + 1;
  const int first = static_cast<int>(sources_.size());
  tails_.push_back({begin, first});
  sources_.resize(first + (end - begin + kLanes - 1) / kLanes * kLanes, kNothing);
  for (int position = end - 1; position >= begin; --position) {
    sources_[first + position - begin] = CacheSlot(sequence.block_table, slot, block_size);
    slot = sequence.SlotBefore(slot);
  }
  return static_cast<int>(tails_.size()) - 1;
}

void TreeTails::Gather(const CpuKvCache& cache, int layer, ThreadTeam& team) {
  if (empty()) return;
  const KvLayout& layout = cache.layout();
  const int num_groups = static_cast<int>(sources_.size()) / kLanes;
  const std::int64_t num_blocks = NumBlocksFor(std::ssize(sources_), layout.block_size);
  head_elements_ = num_blocks * layout.head_elements();
  element_bytes_ = layout.element_bytes;
  const std::int64_t num_bytes =
      layout.num_kv_heads * head_elements_ * element_bytes_ + kOverreadBytes;
  keys_.Grow(num_bytes);
  values_.Grow(num_bytes);
  team.Run(num_groups * layout.num_kv_heads, [&](int task) {
    const int head = task / num_groups, group = task % num_groups;
    WithKvElement(layout, [&]<typename T>(T) { GatherGroup<T>(cache, layer, head, group); });
  });
}

template <typename T>
void TreeTails::GatherGroup(const CpuKvCache& cache, int layer, int head, int group) const {
  const KvLayout& layout = cache.layout();
  const int head_dim = layout.head_dim, block_size = layout.block_size;
  const T* cached_keys = reinterpret_cast<const T*>(cache.keys(layer));
  const T* cached_values = reinterpret_cast<const T*>(cache.values(layer));
  const int first = group * kLanes, slot = first % block_size;
  const std::int64_t block = head * head_elements_ + first / block_size * layout.head_elements();
  T* values = values_.as<T>() + block + std::int64_t{slot} * head_dim;
  T* keys = keys_.as<T>() + block + slot;
  const std::int64_t scales =
      block + std::int64_t{head_dim} * block_size + slot * KvLayout::kScaleBytes;
  const std::int64_t* sources = sources_.data() + first;
  // A tail's first group begins with context, which lies in order already.
  int num_in_order = 0;
  if (sources[0] % kLanes == 0) {
    while (num_in_order < kLanes && sources[num_in_order] == sources[0] + num_in_order) {
      ++num_in_order;
    }
    const T* from = cached_keys + cache.OffsetsOf(sources[0], head).key;
    for (int i = 0; i < head_dim; ++i) {
      std::copy_n(from + std::int64_t{i} * block_size, kLanes, keys + std::int64_t{i} * block_size);
    }
  }
  for (int lane = 0; lane < kLanes && sources[lane] != kNothing; ++lane) {
    const KvOffsets offsets = cache.OffsetsOf(sources[lane], head);
    std::copy_n(cached_values + offsets.value, head_dim, values + std::int64_t{lane} * head_dim);
    if (layout.is_int8()) {
      const std::int64_t scale = scales + lane * KvLayout::kScaleBytes;
      std::copy_n(cached_keys + offsets.scale, KvLayout::kScaleBytes, keys_.as<T>() + scale);
      std::copy_n(cached_values + offsets.scale, KvLayout::kScaleBytes, values_.as<T>() + scale);
    }
    if (lane < num_in_order) continue;
    for (int i = 0; i < head_dim; ++i) {
      keys[std::int64_t{i} * block_size + lane] =
          cached_keys[offsets.key + std::int64_t{i} * block_size];
    }
  }
}

void TreeTails::Attach(int tail, int head, AttentionTask& task) const {
  const std::int64_t begin = head * head_elements_ * element_bytes_;
  task.tail_position = tails_[tail].position;
  task.tail_slot = tails_[tail].slot;
  task.tail_keys = keys_.as<std::byte>() + begin;
  task.tail_values = values_.as<std::byte>() + begin;
}

}  // namespace forerun
