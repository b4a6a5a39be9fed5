// Adapts a draft to its request's constraint before the target runs. Keeps its memory from call to
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
  // Removes every node that the constraint does not allow after its path, with its descendants, and
  // inserts forced tokens: at the root and after each node, at most max_nodes in all. A forced
  // token has no siblings. The other nodes keep their order. Throws HookError. REQUIRES: the draft
  // tokens are certain; a choice among sampled ones would change the output's distribution.
  void Constrain(ConstraintCursor& constraint, int max_nodes, DraftTree& draft);

 private:
  // Append to draft_. REQUIRES: the constraint is in the state after `parent`.
  void AppendForced(ConstraintCursor& constraint, int max_nodes, int parent);
  void Append(TokenId token, int parent, float confidence, bool is_forced);

  // A child of `parent` that has `token` or is forced, or kDraftRoot.
  int FindChild(int parent, TokenId token) const;
  // Sets path_ to the path of `node` and then `token`.
  void SetPath(int node, TokenId token);

  DraftTree draft_;                      // the new draft
  std::vector<bool> is_forced_;          // [draft_.size()]
  std::vector<std::int32_t> new_nodes_;  // by old node
  std::vector<TokenId> path_, forced_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TREE_DRAFT_CONSTRAINER_H_
