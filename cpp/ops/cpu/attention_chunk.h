// Where the keys and values of a stretch of positions lie.
#ifndef FORERUN_CPP_OPS_CPU_ATTENTION_CHUNK_H_
#define FORERUN_CPP_OPS_CPU_ATTENTION_CHUNK_H_

#include "cpp/ops/cpu/attention_state.h"
#include "cpp/ops/cpu/kernels.h"
#include "cpp/util/simd/vec_math.h"

namespace forerun::FORERUN_ISA {

template <class T>
inline constexpr bool kHasScales = false;
template <>
inline constexpr bool kHasScales<std::int8_t> = true;

// Slot i holds position `position` + i.
template <class T>
struct Chunk {
  int position = 0;
  int num_slots = 0;
  std::int64_t key_stride = 0;                 // from a channel to the next
  const T* keys[kPositionsPerChunk / kLanes];  // groups of kLanes slots, channel 0
  const T* values[kPositionsPerChunk];         // channel 0
  // Of int8 elements, by groups: of keys and of values.
  const float* key_scales[kPositionsPerChunk / kLanes];
  const float* value_scales[kPositionsPerChunk / kLanes];
  // As `keys`, of the chunk to follow; only to be prefetched.
  const T* next_keys[kPositionsPerChunk / kLanes];
};

// The slots of `chunk` that a query sees.
template <class T>
FORERUN_INLINE Range VisibleSlots(const AttentionTask& task, const Chunk<T>& chunk, int query) {
  const Range visible = Visible(task, query);
  return Intersect({visible.begin - chunk.position, visible.end - chunk.position},
                   {0, chunk.num_slots});
}

// Channel 0 of a position, and its scales, where T has any.
template <class T>
struct SlotPointers {
  const T* key;
  const T* value;
  const float* key_scale;
  const float* value_scale;
};

template <class T>
FORERUN_INLINE SlotPointers<T> FindSlot(const AttentionTask& task, int position) {
  const bool in_tail = position >= task.tail_position;
  const int index = in_tail ? position - task.tail_position + task.tail_slot : position;
  const int block = index / task.block_size;
  const int slot = index % task.block_size;
  const std::int64_t begin =
      in_tail ? block * task.head_elements : task.block_table[block] * task.block_stride;
  const auto* keys = static_cast<const T*>(in_tail ? task.tail_keys : task.keys);
  const auto* values = static_cast<const T*>(in_tail ? task.tail_values : task.values);
  SlotPointers<T> pointers = {
      keys + begin + slot, values + begin + std::int64_t{slot} * task.head_dim, nullptr, nullptr};
  if constexpr (kHasScales<T>) {
    const std::int64_t scales = begin + std::int64_t{task.head_dim} * task.block_size;
    pointers.key_scale = reinterpret_cast<const float*>(keys + scales) + slot;
    pointers.value_scale = reinterpret_cast<const float*>(values + scales) + slot;
  }
  return pointers;
}

// REQUIRES: positions.begin is a multiple of kPositionsPerChunk. Block sizes are of kLanes.
template <class T>
void FindChunk(const AttentionTask& task, Range positions, Chunk<T>& chunk) {
  const int last = task.position + task.num_rows - 1;
  chunk.position = positions.begin;
  chunk.num_slots = MinOf(kPositionsPerChunk, positions.end - positions.begin);
  chunk.key_stride = task.block_size;
  for (int begin = 0; begin < kPositionsPerChunk; begin += kLanes) {
    const int group = begin / kLanes;
    const int position = MinOf(positions.begin + begin, positions.end - 1) / kLanes * kLanes;
    const int next = MinOf(position + kPositionsPerChunk, last) / kLanes * kLanes;
    const SlotPointers<T> slot = FindSlot<T>(task, position);
    chunk.keys[group] = slot.key;
    chunk.key_scales[group] = slot.key_scale;
    chunk.value_scales[group] = slot.value_scale;
    chunk.next_keys[group] = FindSlot<T>(task, next).key;
    for (int i = 0; i < kLanes; ++i) chunk.values[begin + i] = slot.value + i * task.head_dim;
  }
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_ATTENTION_CHUNK_H_
