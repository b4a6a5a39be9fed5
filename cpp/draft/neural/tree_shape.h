// A draft tree of fixed shape: which candidates after a node are drafted, by their rank.
#ifndef FORERUN_CPP_DRAFT_NEURAL_TREE_SHAPE_H_
#define FORERUN_CPP_DRAFT_NEURAL_TREE_SHAPE_H_

#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"

namespace forerun {

class TreeShape {
 public:
  // No fixed shape: the tree grows by probabilities.
  TreeShape() = default;
  // A path has the ranks of its tokens from the root on, 0 for the most probable: {0, 2} is the
  // third most probable token after the most probable one. Throws InvalidArgument
  // (speculative_token_tree) where a path occurs twice, its prefix is missing, or a rank is not
  // below kMostRanks.
  explicit TreeShape(std::span<const std::vector<int>> paths);

  bool empty() const { return ranks_.empty(); }
  bool is_chain() const { return most_rows_ <= 1 && size() == depth_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  int depth() const { return depth_; }
  // The greatest number of nodes of one level that have children.
  int most_rows() const { return most_rows_; }
  // How many candidates after a node, or kDraftRoot, must be ranked; 0 for a leaf.
  int NumRanked(int node) const { return num_ranked_[node + 1]; }
  // The child of `node` with this rank, or kNoNode.
  int Child(int node, int rank) const;

  static constexpr int kMostRanks = 64;

 private:
  std::vector<int> parents_, ranks_;  // by node: shorter paths first, then by rank
  std::vector<int> num_ranked_;       // by node + 1
  int depth_ = 0, most_rows_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_TREE_SHAPE_H_
