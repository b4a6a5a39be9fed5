// The draft tokens of one step, as a tree; a chain is a tree in which every node's parent is the
// node before it.
//
// Draft tokens are certain (n-gram, suffix, greedy heads) or sampled. The children of a node are
// all of one kind. Sampled siblings are drawn one after the other, without replacement, from one
// row of weights that the draft owns; their order in the draft is the order in which they were
// drawn.
//
// A sampled node must stay in the draft, regardless of its token: removing nodes that look unlikely
// would change the output's distribution. So the choice of where to draw, how many nodes, and which
// to remove may depend on the nodes drawn before, never on the ones that are removed.
#ifndef FORERUN_CPP_DRAFT_TREE_DRAFT_TREE_H_
#define FORERUN_CPP_DRAFT_TREE_DRAFT_TREE_H_

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "forerun/types.h"

namespace forerun {

inline constexpr int kDraftRoot = -1;  // parent of nodes that follow the last committed token
inline constexpr int kNoNode = -2;

// Node i is tokens[i] after the path that ends in parents[i] < i. So every prefix of the nodes is a
// tree too; drafters append the most probable nodes first, because drafts are truncated.
struct DraftTree {
  std::vector<TokenId> tokens;
  std::vector<std::int32_t> parents;
  // The drafter's estimate of the probability that the node is accepted given that its parent is;
  // for the draft length controller.
  std::vector<float> confidence;

  // The row from which the children of a node were drawn: row_after[node + 1], of weights [rows,
  // vocab_size]; -1 or no entry if they are certain. The weights are multiples of 2^-32 in [0, 1];
  // a token's probability is its weight over the sum of all.
  std::vector<std::int32_t> row_after;
  std::vector<float> weights;
  int vocab_size = 0;
  // Where the first of these rows lies in a device's memory, which the host cannot read; null:
  // `weights` has them. They are borrowed until their drafter drafts again.
  const float* device_weights = nullptr;

  // Whether the verification needs the drafter's probabilities: of sampled tokens, but not under
  // the coupled rule.
  bool has_draft_probabilities() const { return !row_after.empty(); }
  // Empty where the children of `node` are certain. In the device's memory, if weights are there.
  std::span<const float> RowAfter(int node) const {
    const auto i = static_cast<std::size_t>(node + 1);
    if (i >= row_after.size() || row_after[i] < 0) return {};
    const float* const first = device_weights != nullptr ? device_weights : weights.data();
    return {first + std::int64_t{row_after[i]} * vocab_size, static_cast<std::size_t>(vocab_size)};
  }
  // A row for the children of `node`, which the caller fills. Valid until the next call.
  std::span<float> AddRowAfter(int node, int num_tokens) {
    vocab_size = num_tokens;
    if (static_cast<int>(row_after.size()) <= node + 1) row_after.resize(node + 2, -1);
    row_after[node + 1] = static_cast<std::int32_t>(weights.size() / vocab_size);
    weights.resize(weights.size() + vocab_size);
    return {weights.end() - vocab_size, weights.end()};
  }

  // A node after a chain that was drawn from the next row in the device's memory.
  void AppendDrawn(TokenId token, float probability, const float* first_row, int num_tokens) {
    vocab_size = num_tokens;
    device_weights = first_row;
    row_after.push_back(size());
    AppendToChain(token, probability);
  }

  int size() const { return static_cast<int>(tokens.size()); }
  bool empty() const { return tokens.empty(); }
  bool is_chain() const {
    for (int i = 0; i < size(); ++i) {
      if (parents[i] != i - 1) return false;
    }
    return true;
  }
  // The number of nodes on the longest path.
  int depth() const {
    if (is_chain()) return size();
    int longest = 0;
    for (int i = 0; i < size(); ++i) {
      int length = 1;
      for (int node = parents[i]; node != kDraftRoot; node = parents[node]) ++length;
      longest = std::max(longest, length);
    }
    return longest;
  }
  // The child of `parent` with `token`, or kNoNode.
  int Child(int parent, TokenId token) const {
    for (int i = parent + 1; i < size(); ++i) {
      if (parents[i] == parent && tokens[i] == token) return i;
    }
    return kNoNode;
  }
  // Whether every node's parent comes before it.
  bool is_tree() const {
    for (int i = 0; i < size(); ++i) {
      if (parents[i] < kDraftRoot || parents[i] >= i) return false;
    }
    return true;
  }
  // Reserves memory for so many certain nodes.
  void Reserve(int num_nodes) {
    tokens.reserve(num_nodes);
    parents.reserve(num_nodes);
    confidence.reserve(num_nodes);
  }
  void Clear() {
    tokens.clear();
    parents.clear();
    confidence.clear();
    row_after.clear();
    weights.clear();
    device_weights = nullptr;
  }
  void Append(TokenId token, int parent, float token_confidence) {
    tokens.push_back(token);
    parents.push_back(parent);
    confidence.push_back(token_confidence);
  }
  void AppendToChain(TokenId token, float token_confidence) {
    Append(token, size() - 1, token_confidence);
  }
  // For humans: a line per node.
  std::string DebugString() const;
  // Keeps the first `count` nodes.
  void Truncate(int count) {
    if (count >= size()) return;
    tokens.resize(count);
    parents.resize(count);
    confidence.resize(count);
    if (std::ssize(row_after) > count + 1) row_after.resize(count + 1);
  }
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TREE_DRAFT_TREE_H_
