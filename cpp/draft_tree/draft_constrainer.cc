#include "cpp/draft_tree/draft_constrainer.h"

#include <algorithm>
#include <utility>

namespace forerun {
namespace {

constexpr std::int32_t kDropped = kDraftRoot - 1;
constexpr float kCertain = 1.0f;

}  // namespace

void DraftConstrainer::Constrain(ConstraintCursor& constraint, int max_nodes, DraftTree& draft) {
  draft_.Clear();
  is_forced_.clear();
  new_nodes_.assign(draft.size(), kDropped);
  constraint.MoveTo({});
  AppendForced(constraint, max_nodes, kDraftRoot);
  for (int i = 0; i < draft.size() && draft_.size() < max_nodes; ++i) {
    const std::int32_t old_parent = draft.parents[i];
    const std::int32_t parent = old_parent == kDraftRoot ? kDraftRoot : new_nodes_[old_parent];
    if (parent == kDropped) continue;
    const TokenId token = draft.tokens[i];
    const int child = FindChild(parent, token);
    if (child != kDraftRoot) {
      if (draft_.tokens[child] == token) new_nodes_[i] = child;
      continue;
    }
    SetPath(parent, token);
    if (!constraint.MoveTo(path_)) continue;
    new_nodes_[i] = draft_.size();
    Append(token, parent, draft.confidence[i], /*is_forced=*/false);
    AppendForced(constraint, max_nodes, new_nodes_[i]);
  }
  std::swap(draft, draft_);
}

void DraftConstrainer::AppendForced(ConstraintCursor& constraint, int max_nodes, int parent) {
  while (draft_.size() < max_nodes) {
    forced_.clear();
    constraint.AppendForced(forced_);
    if (forced_.empty()) return;
    for (TokenId token : forced_) {
      SetPath(parent, token);
      if (draft_.size() == max_nodes || !constraint.MoveTo(path_)) return;
      Append(token, parent, kCertain, /*is_forced=*/true);
      parent = draft_.size() - 1;
    }
  }
}

void DraftConstrainer::Append(TokenId token, int parent, float confidence, bool is_forced) {
  draft_.Append(token, parent, confidence);
  is_forced_.push_back(is_forced);
}

int DraftConstrainer::FindChild(int parent, TokenId token) const {
  for (int child = parent + 1; child < draft_.size(); ++child) {
    if (draft_.parents[child] != parent) continue;
    if (is_forced_[child] || draft_.tokens[child] == token) return child;
  }
  return kDraftRoot;
}

void DraftConstrainer::SetPath(int node, TokenId token) {
  path_.assign(1, token);
  for (; node != kDraftRoot; node = draft_.parents[node]) path_.push_back(draft_.tokens[node]);
  std::ranges::reverse(path_);
}

}  // namespace forerun
