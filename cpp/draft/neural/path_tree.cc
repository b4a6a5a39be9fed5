#include "cpp/draft/neural/path_tree.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

namespace forerun {

void PathTree::Clear() {
  nodes_.clear();
  level_begin_ = first_row_ = first_row_before_ = 0;
  open_.clear();
  row_parents_.clear();
}

void PathTree::Reserve(int num_nodes) {
  nodes_.reserve(num_nodes);
  open_.reserve(num_nodes);
  row_parents_.reserve(num_nodes);
  order_.reserve(num_nodes);
  draft_nodes_.reserve(num_nodes);
  sorted_.reserve(num_nodes);
}

double PathTree::PathProbability(const Node& node) const {
  const double before = node.parent == kDraftRoot ? 1.0 : nodes_[node.parent].path_probability;
  return before * node.probability;
}

void PathTree::Add(TokenId token, int parent, float probability, int shape_node, bool can_grow) {
  nodes_.push_back({token, parent, probability, 0.0, -1, shape_node, can_grow});
  nodes_.back().path_probability = PathProbability(nodes_.back());
}

void PathTree::OpenNext(const Limits& limits) {
  open_.resize(num_nodes() - level_begin_);
  std::iota(open_.begin(), open_.end(), level_begin_);
  level_begin_ = num_nodes();
  std::erase_if(open_, [&](int i) {
    return !nodes_[i].can_grow || nodes_[i].path_probability < limits.least_path_probability;
  });
  if (num_nodes() >= limits.max_nodes) {
    // A child is at most as probable as its parent, and an older node wins among equals.
    sorted_.clear();
    for (const Node& node : nodes_) sorted_.push_back(node.path_probability);
    const auto last = sorted_.begin() + limits.max_nodes - 1;
    std::nth_element(sorted_.begin(), last, sorted_.end(), std::greater<>());
    std::erase_if(open_, [&](int i) { return nodes_[i].path_probability <= *last; });
  }
  const int num_left = limits.max_rows - static_cast<int>(row_parents_.size());
  const auto num_kept = static_cast<std::size_t>(std::max(0, std::min(limits.width, num_left)));
  if (open_.size() > num_kept) {
    SortBestFirst(open_);
    open_.resize(num_kept);
    std::ranges::sort(open_);
  }
  first_row_before_ = std::exchange(first_row_, static_cast<int>(row_parents_.size()));
  for (int i : open_) {
    nodes_[i].row = static_cast<int>(row_parents_.size());
    const int parent = nodes_[i].parent;
    row_parents_.push_back(parent == kDraftRoot ? -1 : nodes_[parent].row);
  }
}

// Of equals the older first, so that no child comes before its parent. A stable sort would
// allocate.
void PathTree::SortBestFirst(std::vector<int>& nodes) const {
  std::ranges::sort(nodes, [this](int a, int b) {
    const double one = nodes_[a].path_probability, other = nodes_[b].path_probability;
    return one != other ? one > other : a < b;
  });
}

int PathTree::AddOrRaise(TokenId token, int parent, float probability) {
  for (int i = parent + 1; i < num_nodes(); ++i) {
    Node& node = nodes_[i];
    if (node.parent != parent || node.token != token) continue;
    if (probability > node.probability) {
      node.probability = probability;
      // All paths through it become more probable.
      for (int k = i; k < num_nodes(); ++k) nodes_[k].path_probability = PathProbability(nodes_[k]);
    }
    return i;
  }
  Add(token, parent, probability);
  return num_nodes() - 1;
}

int PathTree::EndOfBestPath() const {
  int end = kDraftRoot;
  for (bool grows = true; grows;) {
    grows = false;
    const int parent = end;
    for (int i = parent + 1; i < num_nodes(); ++i) {
      if (nodes_[i].parent != parent) continue;
      if (grows && nodes_[i].probability <= nodes_[end].probability) continue;
      end = i;
      grows = true;
    }
  }
  return end;
}

double PathTree::SumOfPathProbabilities() const {
  double sum = 0.0;
  for (const Node& node : nodes_) sum += node.path_probability;
  return sum;
}

void PathTree::PathTo(int node, std::vector<TokenId>& path) const {
  path.clear();
  for (; node != kDraftRoot; node = nodes_[node].parent) path.push_back(nodes_[node].token);
  std::ranges::reverse(path);
}

void PathTree::WriteBest(int max_nodes, DraftTree& draft) {
  order_.resize(nodes_.size());
  std::iota(order_.begin(), order_.end(), 0);
  SortBestFirst(order_);
  if (num_nodes() > max_nodes) order_.resize(max_nodes);
  draft_nodes_.assign(nodes_.size(), kDraftRoot);
  for (int i : order_) {
    const Node& node = nodes_[i];
    draft_nodes_[i] = draft.size();
    draft.Append(node.token, node.parent == kDraftRoot ? kDraftRoot : draft_nodes_[node.parent],
                 node.probability);
  }
}

}  // namespace forerun
