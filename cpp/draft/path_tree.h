// The paths that a model drafter has looked at for one request, and which of them to go on with.
#ifndef FORERUN_CPP_DRAFT_PATH_TREE_H_
#define FORERUN_CPP_DRAFT_PATH_TREE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/verify/draft.h"
#include "forerun/types.h"

namespace forerun {

class PathTree {
 public:
  struct Node {
    TokenId token;
    int parent;         // node, or kDraftRoot
    float probability;  // given its parent
    double path_probability;
    int row;  // its place among the rows that were run, or -1
  };

  void Clear();
  // A guess behind `parent`, on the level under way.
  void Add(TokenId token, int parent, float probability);

  // Ends the level: chooses, for the next, at most `width` of its most probable nodes, no more than
  // leave `max_rows` rows in all, and none whose children cannot be among the max_nodes best.
  // Returns them, in the order in which they were added.
  std::span<const int> OpenNext(int width, int max_rows, int max_nodes);
  std::span<const int> open() const { return open_; }

  const Node& node(int index) const { return nodes_[index]; }
  int num_nodes() const { return static_cast<int>(nodes_.size()); }
  // The first row of the open level, and of the one before it.
  int first_row() const { return first_row_; }
  int first_row_before() const { return first_row_before_; }
  // By row: the row of the node before, or -1. For a tree of slots.
  std::span<const std::int32_t> row_parents() const { return row_parents_; }
  std::vector<TokenId> PathTo(int node) const;

  // Appends the max_nodes most probable nodes, best first: each behind its parent.
  void WriteBest(int max_nodes, Draft& draft);

 private:
  std::vector<Node> nodes_;
  int level_begin_ = 0;
  int first_row_ = 0, first_row_before_ = 0;
  std::vector<int> open_;
  std::vector<std::int32_t> row_parents_;
  std::vector<int> order_, place_;
  std::vector<double> sorted_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_PATH_TREE_H_
