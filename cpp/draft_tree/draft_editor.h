// Removes nodes from drafts and reorders them. Keeps its memory from call to call.
#ifndef FORERUN_CPP_DRAFT_TREE_DRAFT_EDITOR_H_
#define FORERUN_CPP_DRAFT_TREE_DRAFT_EDITOR_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"

namespace forerun {

class DraftEditor {
 public:
  // Keeps these nodes, in this order. REQUIRES: each node's parent comes before it; of a sampled
  // draft all nodes, or the choice would change the output's distribution (see draft_tree.h).
  void Select(std::span<const std::int32_t> nodes, DraftTree& draft);

  // Sorts the nodes depth first, parents before children; siblings keep their order. The path of
  // first children then comes first, without gaps.
  void OrderDepthFirst(DraftTree& draft);

 private:
  // Selects the rows from which the nodes' children were drawn.
  void SelectRows(std::span<const std::int32_t> nodes, DraftTree& draft);

  DraftTree selected_;
  std::vector<std::int32_t> new_nodes_;  // by old node
  std::vector<std::int32_t> sizes_;      // of subtrees
  std::vector<std::int32_t> next_;       // by node, the index of its next child
  std::vector<std::int32_t> order_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TREE_DRAFT_EDITOR_H_
