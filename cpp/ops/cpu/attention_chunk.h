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
};

// The slots of `chunk` that a query sees.
template <class T>
FORERUN_INLINE Range VisibleSlots(const AttentionTask& task, const Chunk<T>& chunk, int query) {
  const Range visible = Visible(task, query);
  return Intersect({visible.begin - chunk.position, visible.end - chunk.position},
                   {0, chunk.num_slots});
}

// REQUIRES: positions.begin is a multiple of kLanes, as are all block sizes.
template <class T>
void FindChunk(const AttentionTask& task, Range positions, Chunk<T>& chunk) {
  chunk.position = positions.begin;
  chunk.num_slots = positions.end - positions.begin;
  chunk.key_stride = task.block_size;
  for (int begin = 0; begin < chunk.num_slots; begin += kLanes) {
    const int position = positions.begin + begin;
    const int offset = position % task.block_size;
    const std::int64_t block = task.block_table[position / task.block_size] * task.block_stride;
    chunk.keys[begin / kLanes] = static_cast<const T*>(task.keys) + block + offset;
    const T* values =
        static_cast<const T*>(task.values) + block + std::int64_t{offset} * task.head_dim;
    for (int i = 0; i < kLanes; ++i) chunk.values[begin + i] = values + i * task.head_dim;
  }
}

// Copies a chunk into float32 panels, once for many queries.
template <class T>
void WidenChunk(const AttentionTask& task, float* panel, const Chunk<T>& from, Chunk<float>& to) {
  to.position = from.position;
  to.num_slots = from.num_slots;
  to.key_stride = kLanes;
  for (int group = 0; group * kLanes < from.num_slots; ++group) {
    to.keys[group] = panel;
    for (int i = 0; i < task.head_dim; ++i, panel += kLanes) {
      Store(panel, Load(from.keys[group] + i * from.key_stride));
    }
  }
  const int padded_dim = PaddedHeadDim(task.head_dim);
  for (int slot = 0; slot < from.num_slots; ++slot, panel += padded_dim) {
    to.values[slot] = panel;
    for (int i = 0; i < padded_dim; i += kLanes) Store(panel + i, Load(from.values[slot] + i));
  }
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_ATTENTION_CHUNK_H_
