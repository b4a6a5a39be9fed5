// A drafter that guesses by a given function, and refuses to be called out of order.
#ifndef FORERUN_TESTS_CPP_TESTING_SCRIPTED_DRAFTER_H_
#define FORERUN_TESTS_CPP_TESTING_SCRIPTED_DRAFTER_H_

#include <functional>
#include <map>
#include <span>
#include <stdexcept>
#include <vector>

#include "cpp/draft/drafter.h"
#include "cpp/util/check.h"

namespace forerun::testing {

class ScriptedDrafter : public Drafter {
 public:
  // The guess for the token after `text`.
  using Guess = std::function<TokenId(std::span<const TokenId> text)>;

  explicit ScriptedDrafter(Guess guess, float confidence = 0.9f)
      : guess_(std::move(guess)), confidence_(confidence) {}

  void Begin(RequestId id, std::span<const TokenId> prompt) override {
    FORERUN_CHECK(!texts_.contains(id));
    texts_[id].assign(prompt.begin(), prompt.end());
  }
  void Observe(RequestId id, std::span<const TokenId> committed) override {
    MaybeThrow();
    std::vector<TokenId>& text = texts_.at(id);
    text.insert(text.end(), committed.begin(), committed.end());
  }
  void End(RequestId id) override {
    FORERUN_CHECK(texts_.erase(id) == 1);
    ++num_ended_;
  }
  void Forget(RequestId id) override {
    FORERUN_CHECK(texts_.erase(id) == 1);
    ++num_forgotten_;
  }
  void Propose(const DraftRequest& wanted, Draft& draft) override {
    MaybeThrow();
    FORERUN_CHECK(draft.empty());
    std::vector<TokenId> text = texts_.at(wanted.id);
    for (int i = 0; i < wanted.max_tokens; ++i) {
      const TokenId token = guess_(text);
      draft.AppendToChain(token, confidence_);
      text.push_back(token);
    }
    max_proposed_ = std::max(max_proposed_, wanted.max_tokens);
  }
  void Reset() override {}

  void ThrowAfter(int num_calls) { num_calls_before_throw_ = num_calls; }
  const std::vector<TokenId>& text(RequestId id) const { return texts_.at(id); }
  std::size_t num_live() const { return texts_.size(); }
  int num_ended() const { return num_ended_; }
  int num_forgotten() const { return num_forgotten_; }
  int max_proposed() const { return max_proposed_; }

 private:
  void MaybeThrow() {
    if (num_calls_before_throw_ >= 0 && num_calls_before_throw_-- == 0) {
      throw std::runtime_error("scripted failure");
    }
  }

  const Guess guess_;
  const float confidence_;
  std::map<RequestId, std::vector<TokenId>> texts_;
  int num_calls_before_throw_ = -1;
  int num_ended_ = 0;
  int num_forgotten_ = 0;
  int max_proposed_ = 0;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_SCRIPTED_DRAFTER_H_
