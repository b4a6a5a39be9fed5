// Builds a draft tree from what followed a text's suffixes earlier.
//
// What follows a context is estimated from every suffix of it that occurred in any source, longest
// first (of equals, in the sources' order). A suffix of `length` tokens that was followed
// num_followed times, count times by token t, adds
//
//   P(t) += weight * count / (num_followed + 2 / length)
//   weight *= (2 / length) / (num_followed + 2 / length)         at first 1
//
// so that shorter suffixes get the probability that longer ones leave, until the weight is below
// kLeastWeight: CountConfidence, blended over the suffixes. The path probability of a node is the
// product of these estimates along its path. The tree has the most probable nodes, and so the
// greatest expected number of accepted tokens of all trees of its size. Where one continuation
// dominates it is a chain.
#ifndef FORERUN_CPP_DRAFT_TEXT_SUFFIX_TREE_BUILDER_H_
#define FORERUN_CPP_DRAFT_TEXT_SUFFIX_TREE_BUILDER_H_

#include <cstdint>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/index/suffix_index.h"
#include "forerun/types.h"

namespace forerun {

class SuffixTreeBuilder {
 public:
  static constexpr double kLeastWeight = 0.02;
  // Of a suffix with more continuations, only this many are considered, and the most frequent one.
  static constexpr int kMaxContinuations = 64;

  struct Limits {
    int max_nodes = 0;
    int max_depth = 0;    // tokens of a path
    int max_context = 0;  // tokens of a suffix
    double min_path_prob = 0;
  };

  // Forgets the sources.
  void Clear();
  // `match` is the text's longest suffix in the index. REQUIRES: resolved.
  void AddSource(const SuffixIndex& index, SuffixIndex::Cursor match);

  // Appends the nodes to an empty draft, the most probable first (of equals, the one whose parent
  // came first, then the lowest token).
  void Grow(const Limits& limits, DraftTree& draft);

 private:
  // A candidate for the next node.
  struct Leaf {
    double path_prob;
    float confidence;
    std::int32_t parent;
    std::int32_t depth;  // 1 for a child of the root
    TokenId token;
  };
  struct Share {
    TokenId token;
    std::int32_t order;
    double probability;
  };

  // Whether `a` is less probable.
  static bool IsWorse(const Leaf& a, const Leaf& b);
  // Adds the continuations of a node, whose cursors are contexts_[node + 1], to the leaves.
  void Branch(int node, double path_prob, int depth, const Limits& limits);
  // shares_ of what follows the cursors in suffixes_.
  void CollectShares();
  void AddShares(const SuffixIndex& index, SuffixIndex::Cursor suffix, double weight);

  std::vector<const SuffixIndex*> sources_;
  std::vector<SuffixIndex::Cursor> contexts_;  // [1 + nodes, sources], the root's first
  std::vector<SuffixIndex::Cursor> suffixes_;  // [sources]
  std::vector<Share> shares_;
  std::vector<Leaf> leaves_;  // a heap
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TEXT_SUFFIX_TREE_BUILDER_H_
