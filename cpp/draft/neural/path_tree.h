// The candidates of a model for one request, as a tree that grows level by level.
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
    int row;         // its index among the rows that were run, or -1
    int shape_node;  // its node of a TreeShape, or kNoNode
    bool can_grow;
  };

  void Clear();
  void Reserve(int num_nodes);
  // Adds a candidate after `parent` to the newest level. One that cannot grow is never continued.
  void Add(TokenId token, int parent, float probability, int shape_node = kNoNode,
           bool can_grow = true);
  // As Add, for another source of candidates. A candidate that is in the tree gets the greater of
  // the two probabilities. Returns its node.
  int AddOrRaise(TokenId token, int parent, float probability);

  struct Limits {
    int width = 1;      // the most nodes of a level that are continued
    int max_rows = 0;   // the same, of all levels together
    int max_nodes = 0;  // of the draft
    double least_path_probability = 0.0;
  };
  // Ends the level: chooses its most probable nodes to be continued, within the limits. Leaves out
  // nodes whose children cannot be among the max_nodes best of the tree.
  void OpenNext(const Limits& limits);
  // The nodes to be continued, in the order in which they were added.
  std::span<const int> open() const { return open_; }

  const Node& node(int index) const { return nodes_[index]; }
  int num_nodes() const { return static_cast<int>(nodes_.size()); }
  // The first row of the open level, and of the one before it.
  int first_row() const { return first_row_; }
  int first_row_before() const { return first_row_before_; }
  // By row: the row of the parent, or -1.
  std::span<const std::int32_t> row_parents() const { return row_parents_; }
  void PathTo(int node, std::vector<TokenId>& path) const;
  // The leaf that is reached from the root by the most probable child of each node; of equals the
  // first.
  int EndOfBestPath() const;
  // The expected number of accepted tokens if all nodes were drafted.
  double SumOfPathProbabilities() const;

  // Appends the max_nodes most probable nodes, best first: each after its parent.
  void WriteBest(int max_nodes, DraftTree& draft);

 private:
  double PathProbability(const Node& node) const;
  void SortBestFirst(std::vector<int>& nodes) const;

  std::vector<Node> nodes_;
  int level_begin_ = 0;
  int first_row_ = 0, first_row_before_ = 0;
  std::vector<int> open_;
  std::vector<std::int32_t> row_parents_;
  std::vector<int> order_, draft_nodes_;
  std::vector<double> sorted_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_PATH_TREE_H_
