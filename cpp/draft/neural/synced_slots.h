// Which slots of the KV blocks a drafter's own keys and values are in.
//
// The drafter follows the target when it is asked for a draft, not before. What it computed for a
// known token is a function of the tokens up to that one, so it stays with the block: whoever
// adopts a cached block finds the drafter's part of it too.
#ifndef FORERUN_CPP_DRAFT_NEURAL_SYNCED_SLOTS_H_
#define FORERUN_CPP_DRAFT_NEURAL_SYNCED_SLOTS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpp/kv/block_table.h"
#include "cpp/kv/slot_map.h"

namespace forerun {

class SyncedSlots {
 public:
  explicit SyncedSlots(int num_blocks) : blocks_(num_blocks) {}

  // How many slots from the start of blocks()[index] on are in step.
  int NumSynced(const BlockTable& table, int index) const {
    const Block& block = blocks_[table.blocks()[index]];
    return block.generation == table.generation(index) ? block.num_synced : 0;
  }

  // REQUIRES: the slots of [begin, end) before `begin` in its block are in step.
  void MarkSynced(const BlockTable& table, int begin, int end) {
    EachBlock(begin, end, table.block_size(), [&](int index, int block_begin, int, int stop) {
      const int num_synced = std::max(NumSynced(table, index), stop - block_begin);
      blocks_[table.blocks()[index]] = {table.generation(index), num_synced};
    });
  }

  // Nothing in the table's blocks is in step any more.
  void Forget(const BlockTable& table) {
    for (BlockId block : table.blocks()) blocks_[block].num_synced = 0;
  }

 private:
  struct Block {
    std::uint32_t generation = 0;
    int num_synced = 0;
  };
  std::vector<Block> blocks_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_SYNCED_SLOTS_H_
