// Where the keys and values of a stretch of positions lie.
#ifndef FORERUN_CPP_OPS_CPU_ATTENTION_CHUNK_H_
#define FORERUN_CPP_OPS_CPU_ATTENTION_CHUNK_H_

#include "cpp/ops/cpu/attention_state.h"
#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/cpu/vec_math.h"

namespace forerun::FORERUN_ISA {

// Slot i holds position `position` + i.
template <class T>
struct Chunk {
  int position = 0;
  int num_slots = 0;
  std::int64_t key_stride = 0;                 // from a channel to the next
  const T* keys[kPositionsPerChunk / kLanes];  // groups of kLanes slots, channel 0
  const T* values[kPositionsPerChunk];         // channel 0
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

// Elements from block 0, channel 0 and slot 0 to the block and slot of a position.
struct SlotPlace {
  std::int64_t block;
  int slot;
};

FORERUN_INLINE SlotPlace FindSlot(const AttentionTask& task, int position) {
  return {task.block_table[position / task.block_size] * task.block_stride,
          position % task.block_size};
}

// REQUIRES: positions.begin is a multiple of kPositionsPerChunk. Block sizes are of kLanes.
template <class T>
void FindChunk(const AttentionTask& task, Range positions, Chunk<T>& chunk) {
  const auto* keys = static_cast<const T*>(task.keys);
  const auto* values = static_cast<const T*>(task.values);
  chunk.position = positions.begin;
  chunk.num_slots = MinOf(kPositionsPerChunk, positions.end - positions.begin);
  chunk.key_stride = task.block_size;
  for (int begin = 0; begin < kPositionsPerChunk; begin += kLanes) {
    const int group = begin / kLanes;
    const int position = MinOf(positions.begin + begin, positions.end - 1) / kLanes * kLanes;
    const int next = MinOf(position + kPositionsPerChunk, positions.end - 1) / kLanes * kLanes;
    const SlotPlace place = FindSlot(task, position), next_place = FindSlot(task, next);
    chunk.keys[group] = keys + place.block + place.slot;
    chunk.next_keys[group] = keys + next_place.block + next_place.slot;
    const T* group_values = values + place.block + std::int64_t{place.slot} * task.head_dim;
    for (int i = 0; i < kLanes; ++i) chunk.values[begin + i] = group_values + i * task.head_dim;
  }
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_ATTENTION_CHUNK_H_
