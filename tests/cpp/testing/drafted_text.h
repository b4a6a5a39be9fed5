// Texts generated step by step, by real verification of drafts from a small scripted drafter.
#ifndef FORERUN_TESTS_CPP_TESTING_DRAFTED_TEXT_H_
#define FORERUN_TESTS_CPP_TESTING_DRAFTED_TEXT_H_

#include <algorithm>
#include <functional>
#include <random>
#include <span>
#include <vector>

#include "cpp/sampling/draft_sampling.h"
#include "cpp/verify/verify.h"

namespace forerun::testing {

// Logits after any text: a function of its last two tokens.
class BigramTable {
 public:
  BigramTable(int vocab_size, unsigned seed, float spread) : vocab_size_(vocab_size) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, spread);
    logits_.resize((vocab_size + 1) * (vocab_size + 1) * vocab_size);
    for (float& logit : logits_) logit = normal(random);
  }

  int vocab_size() const { return vocab_size_; }
  std::vector<float>& all() { return logits_; }
  std::span<float> After(std::span<const TokenId> text) {
    return {logits_.data() + Row(text) * vocab_size_, static_cast<std::size_t>(vocab_size_)};
  }
  std::span<const float> After(std::span<const TokenId> text) const {
    return {logits_.data() + Row(text) * vocab_size_, static_cast<std::size_t>(vocab_size_)};
  }

 private:
  int Row(std::span<const TokenId> text) const {
    const int last = text.empty() ? vocab_size_ : text.back();
    const int before = text.size() < 2 ? vocab_size_ : text[text.size() - 2];
    return last * (vocab_size_ + 1) + before;
  }

  int vocab_size_;
  std::vector<float> logits_;
};

using VerifyFunction = std::function<void(const DraftTree&, RowLogits, const SamplingRule&, int,
                                          SamplerScratch&, Verdict&)>;

// A drafter of trees of one shape, and everything around it that an engine would be.
struct DraftedText {
  const BigramTable& target;
  std::vector<int> shape;  // parents, as in DraftTree
  // Fills the weights of the drafter's distribution after a text. Absent: draft tokens are certain.
  std::function<void(std::span<const TokenId>, std::span<float>)> fill_row;
  // A certain draft token: child number `rank` after a text.
  std::function<TokenId(std::span<const TokenId>, int rank)> certain_token;
  // Draws a sampled child. Absent: AppendDrawnChild.
  std::function<void(DraftTree&, int node, std::uint64_t seed, int first_output_index)> draw = {};
  // Changes a finished draft, as an engine might.
  std::function<void(DraftTree&)> cut = {};
  VerifyFunction verify = Verify;

  // Kept for their memory.
  SamplerScratch scratch = {};
  DraftTree draft = {};
  Verdict verdict = {};
  std::vector<float> logits = {};
  std::vector<TokenId> path = {};
  std::vector<int> num_accepted = std::vector<int>(32);  // how many steps accepted 0, 1, ... nodes

  std::span<const TokenId> PathTo(int node, std::span<const TokenId> text) {
    path.clear();
    for (; node != kDraftRoot; node = draft.parents[node]) path.push_back(draft.tokens[node]);
    for (std::size_t i = 0; path.size() < 2 && i < text.size(); ++i) {
      path.push_back(text[text.size() - 1 - i]);
    }
    std::ranges::reverse(path);
    return path;
  }

  void Propose(const SamplingRule& rule, std::span<const TokenId> text) {
    draft.Clear();
    const int first_output_index = static_cast<int>(text.size());
    for (int node = 0; node < static_cast<int>(shape.size()); ++node) {
      const int parent = shape[node];
      const auto rank = std::count(draft.parents.begin(), draft.parents.end(), parent);
      if (!fill_row) {
        draft.tokens.push_back(certain_token(PathTo(parent, text), static_cast<int>(rank)));
        draft.parents.push_back(parent);
        draft.confidence.push_back(0.5f);
        continue;
      }
      if (rank == 0) {
        const auto row = draft.AddRowAfter(parent, target.vocab_size());
        fill_row(PathTo(parent, text), row);
      }
      if (draw) {
        draw(draft, parent, rule.seed, first_output_index);
      } else if (!AppendDrawnChild(draft, parent, rule.seed, first_output_index)) {
        break;  // a shape for which the drafter has too few tokens ends here
      }
    }
    if (cut) cut(draft);
  }

  // One step: appends what it emits.
  void Step(const SamplingRule& rule, std::vector<TokenId>& text) {
    Propose(rule, text);
    const int vocab_size = target.vocab_size();
    logits.resize((draft.size() + 1) * vocab_size);
    for (int node = -1; node < draft.size(); ++node) {
      std::ranges::copy(target.After(PathTo(node, text)), logits.begin() + (node + 1) * vocab_size);
    }
    verify(draft, {logits.data(), vocab_size, vocab_size}, rule, static_cast<int>(text.size()),
           scratch, verdict);
    ++num_accepted[verdict.num_accepted()];
    text.insert(text.end(), verdict.tokens.begin(), verdict.tokens.end());
  }
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_DRAFTED_TEXT_H_
