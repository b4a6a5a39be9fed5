// A drafter that is told each request's output beforehand, and is right about it or not, as asked.
#ifndef FORERUN_TESTS_CPP_TESTING_KNOWING_DRAFTER_H_
#define FORERUN_TESTS_CPP_TESTING_KNOWING_DRAFTER_H_

#include <map>
#include <random>
#include <vector>

#include "cpp/draft/drafter.h"

namespace forerun::testing {

class KnowingDrafter : public Drafter {
 public:
  KnowingDrafter(int vocab_size, double share_of_right_guesses, unsigned seed)
      : vocab_size_(vocab_size), is_right_(share_of_right_guesses), random_(seed) {}

  void Tell(RequestId id, std::vector<TokenId> output) { outputs_[id] = {std::move(output), 0}; }

  void Begin(RequestId, std::span<const TokenId>) override {}
  void Observe(RequestId id, std::span<const TokenId> committed) override {
    outputs_.at(id).num_done += committed.size();
  }
  void End(RequestId id) override { outputs_.erase(id); }
  void Forget(RequestId id) override { outputs_.erase(id); }
  void Propose(const DraftRequest& wanted, Draft& draft) override {
    const Known& known = outputs_.at(wanted.id);
    for (int i = 0; i < wanted.max_tokens; ++i) {
      const std::size_t index = known.num_done + i;
      const TokenId right = index < known.output.size() ? known.output[index] : 0;
      const TokenId wrong =
          (right + std::uniform_int_distribution<int>(1, vocab_size_ - 1)(random_)) % vocab_size_;
      draft.AppendToChain(is_right_(random_) ? right : wrong, 0.9f);
    }
  }
  void Reset() override {}

 private:
  struct Known {
    std::vector<TokenId> output;
    std::size_t num_done = 0;
  };

  const int vocab_size_;
  std::bernoulli_distribution is_right_;
  std::mt19937 random_;
  std::map<RequestId, Known> outputs_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_KNOWING_DRAFTER_H_
