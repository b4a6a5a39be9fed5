// The slots of the KV blocks that hold a drafter's own keys and values.
//
// The drafter catches up with the target when it drafts, not before. What it computed for a known
// token is a function of the tokens up to that one, so it stays with the block: a request that
// adopts a cached block finds the drafter's keys and values in it too.
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

  // How many slots from the start of blocks()[index] on hold the drafter's part.
  int NumSynced(const BlockTable& table, int index) const {
    const Block& block = blocks_[table.blocks()[index]];
    return block.generation == table.generation(index) ? block.num_synced : 0;
  }

  // REQUIRES: the slots before `begin` in its block are synced.
  void MarkSynced(const BlockTable& table, int begin, int end) {
    EachBlock(begin, end, table.block_size(), [&](int index, int block_begin, int, int stop) {
      const int num_synced = std::max(NumSynced(table, index), stop - block_begin);
      blocks_[table.blocks()[index]] = {table.generation(index), num_synced};
    });
  }

  // No slot of the table's blocks is synced any more.
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
