// A drafter of chains or trees by given functions, which checks the order of its calls.
#ifndef FORERUN_TESTS_CPP_TESTING_SCRIPTED_DRAFTER_H_
#define FORERUN_TESTS_CPP_TESTING_SCRIPTED_DRAFTER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

#include "cpp/draft/drafter.h"
#include "cpp/util/check.h"

namespace forerun::testing {

class ScriptedDrafter : public TextDrafter {
 public:
  // The draft token after `text`, which ends with the path to the parent.
  using NextToken = std::function<TokenId(std::span<const TokenId> text)>;
  // Parents of at most `max_nodes` nodes.
  using Shape = std::function<std::vector<std::int32_t>(int max_nodes)>;

  explicit ScriptedDrafter(NextToken next_token, float confidence = 0.9f)
      : ScriptedDrafter(std::move(next_token), Chain, confidence) {}
  ScriptedDrafter(NextToken next_token, Shape shape, float confidence = 0.9f)
      : next_token_(std::move(next_token)), shape_(std::move(shape)), confidence_(confidence) {}

  static std::vector<std::int32_t> Chain(int max_nodes) {
    std::vector<std::int32_t> parents(max_nodes);
    std::iota(parents.begin(), parents.end(), kDraftRoot);
    return parents;
  }

  void Begin(const NewRequest& request) override {
    FORERUN_CHECK(!texts_.contains(request.id));
    texts_[request.id].assign(request.prompt.begin(), request.prompt.end());
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
  void Propose(const DraftRequest& wanted, DraftTree& draft) override {
    MaybeThrow();
    FORERUN_CHECK(draft.empty());
    for (const std::int32_t parent : shape_(wanted.max_tokens)) {
      std::vector<TokenId> path;
      for (int node = parent; node != kDraftRoot; node = draft.parents[node]) {
        path.insert(path.begin(), draft.tokens[node]);
      }
      std::vector<TokenId> text = texts_.at(wanted.id);
      text.insert(text.end(), path.begin(), path.end());
      draft.Append(next_token_(text), parent, confidence_);
    }
    max_proposed_ = std::max(max_proposed_, wanted.max_tokens);
  }
  void Reset() override {}
  bool Restore(std::span<const PastOutput>, bool) override { return false; }

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

  const NextToken next_token_;
  const Shape shape_;
  const float confidence_;
  std::map<RequestId, std::vector<TokenId>> texts_;
  int num_calls_before_throw_ = -1;
  int num_ended_ = 0;
  int num_forgotten_ = 0;
  int max_proposed_ = 0;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_SCRIPTED_DRAFTER_H_
