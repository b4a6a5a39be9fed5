// A draft tree whose shape is chosen beforehand: which of the guesses behind a node are drafted.
#ifndef FORERUN_CPP_DRAFT_NEURAL_TREE_SHAPE_H_
#define FORERUN_CPP_DRAFT_NEURAL_TREE_SHAPE_H_

#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"

namespace forerun {

class TreeShape {
 public:
  // No shape: the tree grows as probabilities say.
  TreeShape() = default;
  // A path has the ranks of its guesses from the root on, 0 for the most probable: {0, 2} is the
  // third best guess behind the best one. Throws InvalidArgument (speculative_token_tree) where a
  // path comes twice, lacks the path before it, or has a rank that is not below kMostRanks.
  explicit TreeShape(std::span<const std::vector<int>> paths);

  bool empty() const { return ranks_.empty(); }
  bool is_chain() const { return most_rows_ <= 1 && size() == depth_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  int depth() const { return depth_; }
  // The most nodes of a level that others follow.
  int most_rows() const { return most_rows_; }
  // How many guesses behind a node, or kDraftRoot, must be ranked; 0 behind a leaf.
  int NumRanked(int node) const { return num_ranked_[node + 1]; }
  // The node behind `node` with this rank, or kNoNode.
  int Child(int node, int rank) const;

  static constexpr int kMostRanks = 64;

 private:
  std::vector<int> parents_, ranks_;  // by node: shorter paths first, then by rank
  std::vector<int> num_ranked_;       // by node + 1
  int depth_ = 0, most_rows_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_TREE_SHAPE_H_
