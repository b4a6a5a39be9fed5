// Makes a draft obey its request's constraint before the target runs. Keeps its memory from call to
// call.
#ifndef FORERUN_CPP_DRAFT_TREE_DRAFT_CONSTRAINER_H_
#define FORERUN_CPP_DRAFT_TREE_DRAFT_CONSTRAINER_H_

#include <cstdint>
#include <vector>

#include "cpp/draft_tree/constraint_cursor.h"
#include "cpp/draft_tree/draft_tree.h"
#include "forerun/types.h"

namespace forerun {

class DraftConstrainer {
 public:
  // Takes out every node that the constraint rules out behind its path, with all that follows it,
  // and puts in what the constraint forces: at the root and behind each node, at most max_nodes in
  // all. What is forced has no siblings. The others keep their order. Throws HookError.
  // REQUIRES: the draft's guesses are certain; the choice among sampled ones would not be neutral.
  void Constrain(ConstraintCursor& constraint, int max_nodes, DraftTree& draft);

 private:
  // Append to draft_. The constraint must stand behind `parent`.
  void AppendForced(ConstraintCursor& constraint, int max_nodes, int parent);
  void Append(TokenId token, int parent, float confidence, bool is_forced);

  // A child of `parent` that guesses `token` or is forced, or kDraftRoot.
  int FindChild(int parent, TokenId token) const;
  // Sets path_ to what leads to `node` and then `token`.
  void SetPath(int node, TokenId token);

  DraftTree draft_;                   // as it will be
  std::vector<bool> is_forced_;       // [draft_.size()]
  std::vector<std::int32_t> places_;  // of the old nodes among the new
  std::vector<TokenId> path_, forced_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TREE_DRAFT_CONSTRAINER_H_
