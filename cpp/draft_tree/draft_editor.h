// Takes nodes out of drafts and puts them in another order. Keeps its memory from call to call.
#ifndef FORERUN_CPP_DRAFT_TREE_DRAFT_EDITOR_H_
#define FORERUN_CPP_DRAFT_TREE_DRAFT_EDITOR_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"

namespace forerun {

class DraftEditor {
 public:
  // Keeps these nodes, in this order. REQUIRES: each one's parent comes before it. Of a sampled
  // draft all nodes, or the choice would show in the output (see draft.h).
  void Select(std::span<const std::int32_t> nodes, DraftTree& draft);

  // Puts every node right behind its parent or its elder siblings' descendants; siblings keep their
  // order. The path of first children then comes first, without gaps.
  void OrderDepthFirst(DraftTree& draft);

 private:
  // Brings along where their children were drawn.
  void SelectRows(std::span<const std::int32_t> nodes, DraftTree& draft);

  DraftTree selected_;
  std::vector<std::int32_t> places_;  // of the old nodes among the new
  std::vector<std::int32_t> sizes_;   // of subtrees
  std::vector<std::int32_t> next_;    // by node, where its next child goes
  std::vector<std::int32_t> order_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TREE_DRAFT_EDITOR_H_
