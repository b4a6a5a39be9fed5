// Which tokens a batch's rows are, what they see, and where their keys and values lie.
#ifndef FORERUN_CPP_OPS_SEQUENCE_ROWS_H_
#define FORERUN_CPP_OPS_SEQUENCE_ROWS_H_

#include <cstdint>
#include <span>

#include "forerun/types.h"

namespace forerun {

// A draft tree in a sequence's slots: node i lies in slot first_slot + i and follows node
// parents[i] < i, or, where that is -1, the token in slot first_slot - 1.
struct TreeSlots {
  int first_slot = 0;
  std::span<const std::int32_t> parents = {};
};

// The rows of one sequence in a batch: rows [row_begin, row_begin + num_rows) are the tokens in its
// slots num_context .. num_context + num_rows - 1. block_table[s / block_size] holds slot s.
//
// A slot is a position and its row sees all slots up to its own, but for the nodes of a tree: a
// node sees the slots before the tree and its own path, and its position is their number.
struct SequenceRows {
  int row_begin = 0;
  int num_rows = 0;
  int num_context = 0;
  std::span<const BlockId> block_table = {};
  TreeSlots tree = {};

  // The slot before `slot` on its path.
  int SlotBefore(int slot) const {
    const int node = slot - tree.first_slot;
    if (node < 0 || tree.parents.empty()) return slot - 1;
    return tree.first_slot + tree.parents[node];
  }
  int PositionOf(int slot) const {
    if (tree.parents.empty() || slot < tree.first_slot) return slot;
    int position = tree.first_slot - 1;
    for (; slot >= tree.first_slot; slot = SlotBefore(slot)) ++position;
    return position;
  }
  // Every row's slot is in the tree or before it, and parents come before their children.
  bool IsTreeSound() const {
    const int num_nodes = static_cast<int>(tree.parents.size());
    if (num_nodes == 0) return true;
    if (tree.first_slot < 0 || tree.first_slot + num_nodes < num_context + num_rows) return false;
    for (int i = 0; i < num_nodes; ++i) {
      if (tree.parents[i] < -1 || tree.parents[i] >= i) return false;
    }
    return true;
  }
};

// Copies a token's keys and values, in all layers, between slots of the cache (kv/slot_map.h).
struct KvMove {
  std::int64_t from = 0;
  std::int64_t to = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_SEQUENCE_ROWS_H_
