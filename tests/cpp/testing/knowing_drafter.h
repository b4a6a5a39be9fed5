// A drafter of chains or random trees that knows each request's output beforehand and drafts a
// given share of its tokens right.
#ifndef FORERUN_TESTS_CPP_TESTING_KNOWING_DRAFTER_H_
#define FORERUN_TESTS_CPP_TESTING_KNOWING_DRAFTER_H_

#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "cpp/draft/drafter.h"
#include "tests/cpp/testing/random_tree.h"

namespace forerun::testing {

class KnowingDrafter : public TextDrafter {
 public:
  KnowingDrafter(int vocab_size, double share_of_right_tokens, unsigned seed,
                 bool drafts_trees = false)
      : vocab_size_(vocab_size),
        is_right_(share_of_right_tokens),
        random_(seed),
        drafts_trees_(drafts_trees) {}

  void Tell(RequestId id, std::vector<TokenId> output) { outputs_[id] = {std::move(output), 0}; }

  void Begin(const NewRequest&) override {}
  void Observe(RequestId id, std::span<const TokenId> committed) override {
    outputs_.at(id).num_done += committed.size();
  }
  void End(RequestId id) override { outputs_.erase(id); }
  void Forget(RequestId id) override { outputs_.erase(id); }
  void Propose(const DraftRequest& wanted, DraftTree& draft) override {
    const Known& known = outputs_.at(wanted.id);
    for (const std::int32_t parent : Shape(wanted.max_tokens)) {
      const std::size_t index = known.num_done + PathTo(draft.parents, parent).size();
      const TokenId right = index < known.output.size() ? known.output[index] : 0;
      const TokenId wrong = (right + 1 + Below(vocab_size_ - 1)) % vocab_size_;
      draft.Append(is_right_(random_) ? right : wrong, parent, 0.9f);
    }
  }
  void Reset() override {}
  bool Restore(std::span<const PastOutput>, bool) override { return false; }

 private:
  int Below(int n) { return std::uniform_int_distribution<int>(0, n - 1)(random_); }
  std::vector<std::int32_t> Shape(int max_nodes) {
    if (drafts_trees_) {
      return RandomParents(1 + Below(max_nodes), [this](int n) { return Below(n); });
    }
    std::vector<std::int32_t> parents(max_nodes);
    std::iota(parents.begin(), parents.end(), kDraftRoot);
    return parents;
  }

  struct Known {
    std::vector<TokenId> output;
    std::size_t num_done = 0;
  };

  const int vocab_size_;
  std::bernoulli_distribution is_right_;
  std::mt19937 random_;
  const bool drafts_trees_;
  std::map<RequestId, Known> outputs_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_KNOWING_DRAFTER_H_
