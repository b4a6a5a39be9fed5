// The arithmetic between the slots of a sequence, its blocks and the slots of the KV cache.
//
// Slot s of a sequence is at offset s % block_size of block block_table[s / block_size]. Slots of
// the cache are numbered over all its blocks: block * block_size + offset.
#ifndef FORERUN_CPP_KV_SLOT_MAP_H_
#define FORERUN_CPP_KV_SLOT_MAP_H_

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>

#include "forerun/types.h"

namespace forerun {

// Blocks that hold `num_slots` slots. Does not overflow.
template <std::integral Count>
constexpr Count NumBlocksFor(Count num_slots, int block_size) {
  return num_slots / block_size + (num_slots % block_size != 0 ? 1 : 0);
}

// The slot of the cache that holds slot `slot` of a sequence.
inline std::int64_t CacheSlot(std::span<const BlockId> block_table, int slot, int block_size) {
  return std::int64_t{block_table[slot / block_size]} * block_size + slot % block_size;
}

// Calls run(index, block_begin, slot_begin, slot_end) for each block that slots [begin, end) touch,
// in order: its index in the block table, its first slot, and which of the slots are in it.
template <class Run>
void EachBlock(int begin, int end, int block_size, Run run) {
  while (begin < end) {
    const int index = begin / block_size;
    const int stop = std::min(end, (index + 1) * block_size);
    run(index, index * block_size, begin, stop);
    begin = stop;
  }
}

}  // namespace forerun

#endif  // FORERUN_CPP_KV_SLOT_MAP_H_
