// A drafter's guess of what comes next, as a tree; a chain is a tree whose every parent is the node
// before it.
#ifndef FORERUN_CPP_VERIFY_DRAFT_H_
#define FORERUN_CPP_VERIFY_DRAFT_H_

#include <cstdint>
#include <vector>

#include "forerun/types.h"

namespace forerun {

inline constexpr int kDraftRoot = -1;  // parent of nodes that follow the last committed token

// Node i guesses tokens[i] after the path that ends in parents[i] < i.
struct Draft {
  std::vector<TokenId> tokens;
  std::vector<std::int32_t> parents;
  // The drafter's own estimate that the node is accepted given its parent was; for the length
  // controller.
  std::vector<float> confidence;

  int size() const { return static_cast<int>(tokens.size()); }
  bool empty() const { return tokens.empty(); }
  void Clear() {
    tokens.clear();
    parents.clear();
    confidence.clear();
  }
  void AppendToChain(TokenId token, float token_confidence) {
    parents.push_back(size() - 1);
    tokens.push_back(token);
    confidence.push_back(token_confidence);
  }
  // Keeps the first `count` nodes, which are closed under parents.
  void Truncate(int count) {
    if (count >= size()) return;
    tokens.resize(count);
    parents.resize(count);
    confidence.resize(count);
  }
};

}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_DRAFT_H_
