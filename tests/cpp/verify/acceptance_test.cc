// Rejection and block verification: the fast walk against the slow definition, and what the rules
// promise beside the distribution (acceptance_frequency_test.cc has that).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cpp/sampling/draft_sampling.h"
#include "cpp/sampling/logits_processors.h"
#include "cpp/verify/verify.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_params.h"

namespace forerun {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr AcceptanceMethod kMethods[] = {AcceptanceMethod::kCoupled, AcceptanceMethod::kRejection,
                                         AcceptanceMethod::kBlock};

struct Outcome {
  Verdict verdict;
  std::string error;

  bool operator==(const Outcome& other) const {
    return verdict.tokens == other.verdict.tokens &&
           verdict.accepted_nodes == other.verdict.accepted_nodes && error == other.error;
  }
};

template <typename Function>
Outcome OutcomeOf(const Function& verify) {
  Outcome outcome;
  try {
    verify(outcome.verdict);
  } catch (const NumericError& error) {
    outcome.error = error.what();
  }
  return outcome;
}

// A random tree over random rows of logits, with draft tokens of every kind and sometimes a false
// one.
class RandomTree {
 public:
  explicit RandomTree(unsigned seed) : random_(seed) {
    vocab_size_ = Chance(2) ? Pick(1, 9) : Pick(10, 300);
    constexpr double kTemperatures[] = {0.0, 1e-6, 0.3, 0.7, 1.0, 1.0, 1.5, 1e9};
    rule.temperature = kTemperatures[Pick(0, 7)];
    if (Chance(4)) rule.top_k = Pick(1, vocab_size_ + 1);
    if (Chance(3)) rule.top_p = Chance(4) ? Unit() * 1e-6 + 1e-300 : 1.0 - Unit() * 0.3;
    if (Chance(4)) rule.min_p = std::pow(Unit(), 3);
    rule.seed = random_();
    first_output_index = Pick(0, 6);
    if (vocab_size_ > 4 && Chance(2)) AddProcessors();
    const int num_nodes = Pick(0, 9);
    const bool is_chain = Chance(3);
    AddLogits();
    while (draft.size() < num_nodes && num_tries_++ < 40) {
      AddChild(is_chain ? draft.size() - 1 : Pick(-1, draft.size() - 1));
    }
  }

  RowLogits logits() const { return {logits_.data(), vocab_size_, vocab_size_}; }

  DraftTree draft;
  SamplingRule rule;
  int first_output_index;

 private:
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Chance(int one_in) { return Pick(1, one_in) == 1; }
  double Unit() { return std::uniform_real_distribution<double>(0.0, 1.0)(random_); }

  void AddProcessors() {
    testing::RandomParams(random_, vocab_size_, 0.4).SetLogitsOptions(params_);
    params_.min_tokens = Pick(0, 8);
    end_tokens_ = {Pick(0, 3), Pick(0, 3)};
    text_ = {Pick(0, 4), Pick(0, 4)};
    processors_.emplace(params_, end_tokens_, text_, 2 + first_output_index);
    for (int i = 0; i < first_output_index; ++i) text_.push_back(Pick(0, 4));
    processors_->ObserveCommitted();
    rule.processors = &*processors_;
  }

  void AddLogits() {
    std::normal_distribution<float> normal(0.0f, Chance(3) ? 10.0f : 1.5f);
    const int kind = Pick(0, 5);
    const std::size_t begin = logits_.size();
    for (int token = 0; token < vocab_size_; ++token) {
      float logit = normal(random_);
      if (kind == 0) logit = static_cast<float>(Pick(0, 3));
      if (kind == 1 && Chance(2)) logit = -kInfinity;
      if (kind == 2) logit = 2.5f;
      logits_.push_back(logit);
    }
    logits_[begin + vocab_size_ - 1] = 1.0f;
    if (Chance(40)) logits_[begin + Pick(0, vocab_size_ - 1)] = std::nanf("");
  }

  void FillRow(int node, std::span<float> row) {
    switch (Pick(0, 4)) {
      case 0:  // the target's own distribution
        try {
          FillDraftRow(logits().row(node + 1), rule, scratch_, row);
        } catch (const NumericError&) {
          row[0] = 1.0f;
        }
        break;
      case 1:
        row[Pick(0, vocab_size_ - 1)] = 0.5f;
        break;
      default:
        for (float& weight : row) weight = Chance(4) ? 0.0f : static_cast<float>(Unit());
        row[Pick(0, vocab_size_ - 1)] = 1.0f;
    }
    RoundDraftRow(row);
  }

  void AddChild(int node) {
    const bool has_children = std::ranges::count(draft.parents, node) > 0;
    if (!has_children && rule.temperature > 0 && Chance(2)) {
      FillRow(node, draft.AddRowAfter(node, vocab_size_));
    }
    const bool is_false = Chance(30);
    if (draft.RowAfter(node).empty() || is_false) {
      draft.parents.push_back(node);
      draft.tokens.push_back(Pick(0, vocab_size_ - 1));
      draft.confidence.push_back(0.5f);
    } else if (!AppendDrawnChild(draft, node, rule.seed, first_output_index)) {
      return;
    }
    AddLogits();
  }

  std::mt19937 random_;
  SamplerScratch scratch_;
  int vocab_size_;
  int num_tries_ = 0;
  SamplingParams params_;
  std::vector<TokenId> end_tokens_, text_;
  std::optional<LogitsProcessors> processors_;
  std::vector<float> logits_;
};

TEST(AcceptanceTest, VerifyEqualsTheSlowDefinitionOnRandomTrees) {
  const int num_trees = testing::NumExamples(6000, 300000);
  SamplerScratch scratch;
  std::vector<int> num_accepted(10);
  int num_errors = 0;
  for (int seed = 0; seed < num_trees; ++seed) {
    RandomTree tree(seed);
    for (AcceptanceMethod method : kMethods) {
      tree.rule.acceptance_method = method;
      const Outcome fast = OutcomeOf([&](Verdict& out) {
        Verify(tree.draft, tree.logits(), tree.rule, tree.first_output_index, scratch, out);
      });
      const Outcome slow = OutcomeOf([&](Verdict& out) {
        VerifySlow(tree.draft, tree.logits(), tree.rule, tree.first_output_index, out);
      });
      ASSERT_EQ(fast.verdict.tokens, slow.verdict.tokens) << "tree " << seed;
      ASSERT_TRUE(fast == slow) << "tree " << seed << ": " << fast.error << " / " << slow.error;
      ++num_accepted[fast.verdict.num_accepted()];
      num_errors += !fast.error.empty();
    }
  }
  for (int length = 0; length < 5; ++length) EXPECT_GT(num_accepted[length], 50) << length;
  EXPECT_GT(num_errors, 50);
}

TEST(AcceptanceTest, VerifyEqualsTheSlowDefinitionOnALargeVocabulary) {
  constexpr int kLarge = 20011;
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(3 * kLarge);
  for (float& logit : logits) logit = normal(random);
  SamplerScratch scratch;
  std::vector<SamplingRule> rules(4);
  rules[1].top_p = 0.9;
  rules[2].top_k = 50;
  rules[3].min_p = 0.01;
  for (SamplingRule rule : rules) {
    DraftTree certain, drawn;
    for (int node = 0; node < 2; ++node) {
      const std::span<const float> row(logits.data() + node * kLarge, kLarge);
      certain.AppendToChain(SampleToken(row, rule, node, scratch), 0.5f);
      FillDraftRow(row, rule, scratch, drawn.AddRowAfter(node - 1, kLarge));
      for (float& weight : drawn.weights) weight = weight > 0.5f ? 0.5f : weight;
      ASSERT_TRUE(AppendDrawnChild(drawn, node - 1, 9, 0));
    }
    for (AcceptanceMethod method : {AcceptanceMethod::kRejection, AcceptanceMethod::kBlock}) {
      rule.acceptance_method = method;
      for (rule.seed = 0; rule.seed < 2; ++rule.seed) {
        for (const DraftTree& draft : {certain, drawn}) {
          Verdict fast, slow;
          Verify(draft, {logits.data(), kLarge, kLarge}, rule, 0, scratch, fast);
          VerifySlow(draft, {logits.data(), kLarge, kLarge}, rule, 0, slow);
          ASSERT_EQ(fast.tokens, slow.tokens);
          ASSERT_EQ(fast.accepted_nodes, slow.accepted_nodes);
        }
      }
    }
  }
}

TEST(AcceptanceTest, AtTemperatureZeroAllMethodsFollowTheArgMax) {
  for (int seed = 0; seed < 200; ++seed) {
    RandomTree tree(seed);
    tree.rule.temperature = 0.0;
    const auto outcome_under = [&](AcceptanceMethod method) {
      SamplerScratch scratch;
      tree.rule.acceptance_method = method;
      return OutcomeOf([&](Verdict& out) {
        Verify(tree.draft, tree.logits(), tree.rule, tree.first_output_index, scratch, out);
      });
    };
    const Outcome coupled = outcome_under(AcceptanceMethod::kCoupled);
    ASSERT_TRUE(outcome_under(AcceptanceMethod::kRejection) == coupled);
    ASSERT_TRUE(outcome_under(AcceptanceMethod::kBlock) == coupled);
  }
}

// Two draft tokens; the row after the second is broken, and matters only where it is accepted.
TEST(AcceptanceTest, ABrokenRowFailsTheRequestOnlyOnTheAcceptedPath) {
  const float nan = std::nanf("");
  const std::vector<float> logits = {0, 0, 0, 1, 2, 0, nan, 0, 0};
  DraftTree draft;
  draft.AppendToChain(1, 0.5f);
  draft.AppendToChain(1, 0.5f);
  SamplerScratch scratch;
  for (AcceptanceMethod method : kMethods) {
    int num_errors = 0, num_accepted = 0;
    SamplingRule rule;
    rule.acceptance_method = method;
    for (rule.seed = 0; rule.seed < 300; ++rule.seed) {
      const Outcome outcome = OutcomeOf(
          [&](Verdict& out) { Verify(draft, {logits.data(), 3, 3}, rule, 0, scratch, out); });
      EXPECT_EQ(!outcome.error.empty(), outcome.verdict.num_accepted() == 2);
      EXPECT_EQ(static_cast<int>(outcome.verdict.tokens.size()),
                outcome.verdict.num_accepted() + (outcome.error.empty() ? 1 : 0));
      num_errors += !outcome.error.empty();
      num_accepted += outcome.verdict.num_accepted() > 0;
    }
    EXPECT_GT(num_errors, 30);
    EXPECT_GT(num_accepted, num_errors);
  }
}

TEST(AcceptanceTest, DrawnSiblingsAreDistinctUntilNothingIsLeft) {
  DraftTree draft;
  const auto row = draft.AddRowAfter(kDraftRoot, 6);
  const float weights[] = {0.0f, 0.5f, 0.0f, 0x1p-32f, 1.0f, 0.0f};
  std::ranges::copy(weights, row.begin());
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(AppendDrawnChild(draft, kDraftRoot, 1, 0));
  EXPECT_FALSE(AppendDrawnChild(draft, kDraftRoot, 1, 0));
  std::vector<TokenId> tokens = draft.tokens;
  std::ranges::sort(tokens);
  EXPECT_EQ(tokens, (std::vector<TokenId>{1, 3, 4}));
}

// The row of the root has mass for token 1 alone. A second child cannot have been drawn from it: it
// reduces no mass of the target.
TEST(AcceptanceTest, AChildDrawnFromNothingTakesNothing) {
  const std::vector<float> logits(4 * 5, 0.0f);
  const auto draft_of = [](std::vector<TokenId> tokens) {
    DraftTree draft;
    draft.AddRowAfter(kDraftRoot, 5)[1] = 0.5f;
    for (TokenId token : tokens) draft.Append(token, kDraftRoot, 0.5f);
    return draft;
  };
  const DraftTree honest = draft_of({4, 1}), lying = draft_of({4, 1, 2});
  SamplerScratch scratch;
  for (AcceptanceMethod method : {AcceptanceMethod::kRejection, AcceptanceMethod::kBlock}) {
    SamplingRule rule;
    rule.acceptance_method = method;
    for (rule.seed = 0; rule.seed < 300; ++rule.seed) {
      Verdict expected, actual, slow;
      Verify(honest, {logits.data(), 5, 5}, rule, 0, scratch, expected);
      Verify(lying, {logits.data(), 5, 5}, rule, 0, scratch, actual);
      VerifySlow(lying, {logits.data(), 5, 5}, rule, 0, slow);
      ASSERT_EQ(actual.tokens, expected.tokens);
      ASSERT_EQ(slow.tokens, expected.tokens);
    }
  }
}

TEST(AcceptanceTest, TruncatingForgetsTheRowsOfDroppedNodes) {
  DraftTree draft;
  draft.AddRowAfter(kDraftRoot, 2)[1] = 1.0f;
  ASSERT_TRUE(AppendDrawnChild(draft, kDraftRoot, 1, 0));
  draft.AddRowAfter(0, 2)[0] = 1.0f;
  ASSERT_TRUE(AppendDrawnChild(draft, 0, 1, 0));
  draft.AddRowAfter(1, 2)[0] = 1.0f;
  draft.Truncate(1);
  EXPECT_EQ(draft.RowAfter(kDraftRoot).size(), 2u);
  EXPECT_EQ(draft.RowAfter(0).size(), 2u);
  EXPECT_TRUE(draft.RowAfter(1).empty());
  draft.Clear();
  EXPECT_FALSE(draft.has_draft_probabilities());
}

TEST(AcceptanceTest, UniformNoiseIsPinnedAndItsStreamsDiffer) {
  EXPECT_EQ(UniformNoise(0, NoisePurpose::kAcceptance, 0, 0), 0x5b9ce7ca2691cp-53);
  std::vector<double> seen;
  for (NoisePurpose purpose :
       {NoisePurpose::kAcceptance, NoisePurpose::kResidual, NoisePurpose::kDraft}) {
    for (int output_index = 0; output_index < 30; ++output_index) {
      for (int node = 0; node < 30; ++node) {
        seen.push_back(UniformNoise(42, purpose, output_index, node));
      }
    }
  }
  std::ranges::sort(seen);
  EXPECT_EQ(std::ranges::adjacent_find(seen), seen.end());
  EXPECT_GE(seen.front(), 0.0);
  EXPECT_LT(seen.back(), 1.0);
}

}  // namespace
}  // namespace forerun
