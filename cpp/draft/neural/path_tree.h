// The paths that a model drafter has looked at for one request, and which of them to go on with.
#ifndef FORERUN_CPP_DRAFT_NEURAL_PATH_TREE_H_
#define FORERUN_CPP_DRAFT_NEURAL_PATH_TREE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "forerun/types.h"

namespace forerun {

class PathTree {
 public:
  struct Node {
    TokenId token;
    int parent;         // node, or kDraftRoot
    float probability;  // given its parent
    double path_probability;
    int row;    // its place among the rows that were run, or -1
    int place;  // its node of a TreeShape, or kNoNode
    bool can_grow;
  };

  void Clear();
  void Reserve(int num_nodes);
  // A guess behind `parent`, on the level under way. One that cannot grow is never continued.
  void Add(TokenId token, int parent, float probability, int place = kNoNode, bool can_grow = true);
  // The same guess once more, by somebody else, makes it as probable as the surer of them says.
  // Returns its node.
  int AddOrRaise(TokenId token, int parent, float probability);

  struct Limits {
    int width = 1;      // nodes of a level that are continued
    int max_rows = 0;   // nodes of all levels that are
    int max_nodes = 0;  // of the draft
    double least_path_probability = 0.0;
  };
  // Ends the level: chooses its most probable nodes to be continued, within the limits, and none
  // whose children cannot be among the max_nodes best of all.
  void OpenNext(const Limits& limits);
  // In the order in which they were added.
  std::span<const int> open() const { return open_; }

  const Node& node(int index) const { return nodes_[index]; }
  int num_nodes() const { return static_cast<int>(nodes_.size()); }
  // The first row of the open level, and of the one before it.
  int first_row() const { return first_row_; }
  int first_row_before() const { return first_row_before_; }
  // By row: the row of the node before, or -1. For a tree of slots.
  std::span<const std::int32_t> row_parents() const { return row_parents_; }
  void PathTo(int node, std::vector<TokenId>& path) const;
  // From the root by the most probable child, again and again; of equals the first.
  int EndOfBestPath() const;
  // How many of the nodes, were they a draft, would be accepted.
  double SumOfPathProbabilities() const;

  // Appends the max_nodes most probable nodes, best first: each behind its parent.
  void WriteBest(int max_nodes, DraftTree& draft);

 private:
  // By its parent's, which comes before it.
  double PathProbability(const Node& node) const;
  void SortBestFirst(std::vector<int>& nodes) const;

  std::vector<Node> nodes_;
  int level_begin_ = 0;
  int first_row_ = 0, first_row_before_ = 0;
  std::vector<int> open_;
  std::vector<std::int32_t> row_parents_;
  std::vector<int> order_, place_;
  std::vector<double> sorted_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_PATH_TREE_H_
