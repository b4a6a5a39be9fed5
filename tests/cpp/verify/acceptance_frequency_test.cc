// What rejection and block verification emit, against the target's distribution: chi-square over
// 67,000 texts of three tokens, 201,000 draws, made by as many steps of the real functions as they
// need, with fixed seeds; a million texts in a long run. Planted errors show that the check would
// notice.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "tests/cpp/testing/chi_square.h"
#include "tests/cpp/testing/drafted_text.h"
#include "tests/cpp/testing/num_examples.h"

namespace forerun {
namespace {

using testing::BigramTable;
using testing::DraftedText;
using testing::kTooSurprising;
using testing::Surprise;
using Probabilities = std::vector<double>;
using Text = std::span<const TokenId>;

const int kNumTexts = testing::NumExamples(67000, 1000000);
constexpr int kVocabSize = 8;
const std::vector<int> kChain = {-1, 0, 1};
// Two children of the root; the first has two children, the second one; one leaf deeper.
const std::vector<int> kTree = {-1, -1, 0, 0, 1, 2};

constexpr AcceptanceMethod kRejection = AcceptanceMethod::kRejection;
constexpr AcceptanceMethod kBlock = AcceptanceMethod::kBlock;

// The probabilities that the options promise, by the shortest route.
Probabilities TargetAfter(const BigramTable& table, Text text, const SamplingRule& rule) {
  const auto logits = table.After(text);
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, [&](int a, int b) { return logits[a] > logits[b]; });
  Probabilities probs(logits.size());
  for (std::size_t t = 0; t < probs.size(); ++t) {
    probs[t] = std::exp((logits[t] - logits[order[0]]) / rule.temperature);
    if (probs[t] < rule.min_p) probs[t] = 0;
  }
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (rule.top_k > 0 && static_cast<int>(i) >= rule.top_k) probs[order[i]] = 0;
  }
  const double total = std::accumulate(probs.begin(), probs.end(), 0.0);
  double before = 0;
  for (int token : order) {
    const double prob = probs[token] / total;
    if (before >= rule.top_p) probs[token] = 0;
    before += prob;
  }
  const double kept = std::accumulate(probs.begin(), probs.end(), 0.0);
  for (double& prob : probs) prob /= kept;
  return probs;
}

// Of all texts of `length` tokens, the last token counting fastest.
Probabilities TargetOfTexts(const BigramTable& table, const SamplingRule& rule, int length) {
  Probabilities probs = {1.0};
  std::vector<std::vector<TokenId>> texts = {{}};
  for (int i = 0; i < length; ++i) {
    Probabilities longer_probs;
    std::vector<std::vector<TokenId>> longer_texts;
    for (std::size_t j = 0; j < texts.size(); ++j) {
      const Probabilities next = TargetAfter(table, texts[j], rule);
      for (TokenId token = 0; token < table.vocab_size(); ++token) {
        longer_probs.push_back(probs[j] * next[token]);
        longer_texts.push_back(texts[j]);
        longer_texts.back().push_back(token);
      }
    }
    probs = std::move(longer_probs);
    texts = std::move(longer_texts);
  }
  return probs;
}

// By how much the first `length` tokens surprise. Rare texts count as one.
double SurpriseOf(DraftedText& drafted, SamplingRule rule, int length, int num_texts = kNumTexts) {
  const Probabilities expected = TargetOfTexts(drafted.target, rule, length);
  std::vector<int> counts(expected.size());
  std::vector<TokenId> text;
  for (int i = 0; i < num_texts; ++i) {
    rule.seed = static_cast<std::uint64_t>(i);
    text.clear();
    while (static_cast<int>(text.size()) < length) drafted.Step(rule, text);
    std::size_t index = 0;
    for (int j = 0; j < length; ++j) index = index * drafted.target.vocab_size() + text[j];
    ++counts[index];
  }
  Probabilities pooled = {0.0};
  std::vector<int> pooled_counts = {0};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == 0.0 || expected[i] * num_texts >= 10.0) {
      pooled.push_back(expected[i]);
      pooled_counts.push_back(counts[i]);
    } else {
      pooled[0] += expected[i];
      pooled_counts[0] += counts[i];
    }
  }
  return Surprise(pooled_counts, pooled);
}

// The weights of a drafter whose logits are `table`.
BigramTable WeightsOf(BigramTable table, double temperature = 1.0) {
  const int vocab_size = table.vocab_size();
  for (auto row = table.all().begin(); row != table.all().end(); row += vocab_size) {
    const float max = *std::max_element(row, row + vocab_size);
    std::for_each(row, row + vocab_size, [&](float& logit) {
      logit = static_cast<float>(std::exp((logit - max) / temperature));
    });
  }
  RoundDraftRow(table.all());
  return table;
}

class AcceptanceFrequencyTest : public ::testing::Test {
 protected:
  AcceptanceFrequencyTest() {
    for (std::size_t i = 0; i < near_.all().size(); ++i) {
      near_.all()[i] = target_.all()[i] + 0.3f * far_.all()[i];
    }
  }

  // A drafter that samples from rows of weights.
  DraftedText Sampled(std::vector<int> shape, BigramTable weights) const {
    return {.target = target_,
            .shape = std::move(shape),
            .fill_row =
                [weights = std::move(weights)](Text text, std::span<float> row) {
                  std::ranges::copy(weights.After(text), row.begin());
                },
            .certain_token = {}};
  }

  // Under both rules. Leaves in num_accepted_ how many steps accepted 0, 1, ... nodes.
  void ExpectTarget(DraftedText drafted, SamplingRule rule = {}) {
    for (AcceptanceMethod method : {kRejection, kBlock}) {
      rule.acceptance_method = method;
      EXPECT_LT(SurpriseOf(drafted, rule, /*length=*/3), kTooSurprising)
          << (method == kBlock ? "block" : "rejection");
    }
    num_accepted_ = drafted.num_accepted;
  }

  void ExpectEveryLength() const {
    for (int length = 0; length <= 3; ++length) {
      EXPECT_GT(num_accepted_[length], kNumTexts / 50) << length;
    }
  }

  BigramTable target_{kVocabSize, 1, 1.2f};
  BigramTable far_{kVocabSize, 2, 1.5f};
  BigramTable near_{kVocabSize, 3, 0.0f};
  std::vector<int> num_accepted_;
};

TEST_F(AcceptanceFrequencyTest, DraftsLikeTheTarget) {
  ExpectTarget(Sampled(kChain, WeightsOf(target_)));
  // All are accepted, but for the roundings of the drafter's weights.
  EXPECT_GT(num_accepted_[3], 1.99 * kNumTexts);
  ExpectTarget(Sampled(kTree, WeightsOf(target_)));
}

TEST_F(AcceptanceFrequencyTest, DraftsNearTheTarget) {
  ExpectTarget(Sampled(kChain, WeightsOf(near_)));
  ExpectEveryLength();
  ExpectTarget(Sampled(kTree, WeightsOf(near_)));
}

TEST_F(AcceptanceFrequencyTest, DraftsFarFromTheTarget) {
  ExpectTarget(Sampled(kChain, WeightsOf(far_)));
  ExpectTarget(Sampled(kTree, WeightsOf(far_)));
  ExpectEveryLength();
}

// The drafter knows nothing of some of the target's tokens, others it wants the target never has.
TEST_F(AcceptanceFrequencyTest, DraftsThatMissMassAndThatHaveTooMuch) {
  BigramTable weights = WeightsOf(near_);
  for (std::size_t i = 0; i < weights.all().size(); i += 3) weights.all()[i] = 0.0f;
  for (std::size_t i = 0; i < target_.all().size(); i += 5) {
    target_.all()[i] = -std::numeric_limits<float>::infinity();
  }
  ExpectTarget(Sampled(kChain, weights));
  ExpectEveryLength();
  ExpectTarget(Sampled(kTree, weights));
}

TEST_F(AcceptanceFrequencyTest, CertainDrafts) {
  const auto certain_token = [this](Text text, int rank) {
    // The best of the near drafter for the first child, any for others; sometimes the same twice.
    const auto logits = near_.After(text);
    const auto best = std::ranges::max_element(logits) - logits.begin();
    return static_cast<TokenId>((best + 3 * rank * (best % 2)) % kVocabSize);
  };
  ExpectTarget(
      {.target = target_, .shape = kChain, .fill_row = {}, .certain_token = certain_token});
  ExpectEveryLength();
  ExpectTarget({.target = target_, .shape = kTree, .fill_row = {}, .certain_token = certain_token});
}

// As a row, a certain draft token leaves no mass for its siblings.
TEST_F(AcceptanceFrequencyTest, CertainDraftsAsRowsOfWeights) {
  BigramTable weights(kVocabSize, 0, 0.0f);
  for (std::size_t i = 2; i < weights.all().size(); i += kVocabSize) weights.all()[i] = 0.25f;
  ExpectTarget(Sampled({-1, 0, 0, 1}, weights));
}

TEST_F(AcceptanceFrequencyTest, TruncatedTargets) {
  SamplingRule top_k{.temperature = 0.8, .top_k = 3};
  ExpectTarget(Sampled(kTree, WeightsOf(near_)), top_k);
  SamplingRule top_p{.temperature = 1.3, .top_p = 0.7};
  ExpectTarget(Sampled(kChain, WeightsOf(near_, 1.3)), top_p);
  ExpectEveryLength();
  SamplingRule min_p{.temperature = 1.0, .min_p = 0.2};
  ExpectTarget(Sampled(kChain, WeightsOf(far_)), min_p);
}

// The drafter keeps what the target's options keep: the usual case.
TEST_F(AcceptanceFrequencyTest, TruncatedTargetsAndDrafts) {
  SamplingRule rule{.top_k = 4, .top_p = 0.9};
  SamplerScratch scratch;
  BigramTable weights = near_;
  for (std::size_t i = 0; i < weights.all().size(); i += kVocabSize) {
    FillDraftRow({near_.all().data() + i, kVocabSize}, rule, scratch,
                 {weights.all().data() + i, kVocabSize});
  }
  ExpectTarget(Sampled(kChain, weights), rule);
  ExpectTarget(Sampled(kTree, weights), rule);
}

// Planted errors, each of which one of the tests above must not survive.
class PlantedErrorTest : public AcceptanceFrequencyTest {
 protected:
  double SurpriseUnder(AcceptanceMethod method, DraftedText drafted, int num_texts = 20000) {
    SamplingRule rule;
    rule.acceptance_method = method;
    return SurpriseOf(drafted, rule, /*length=*/3, num_texts);
  }
};

TEST_F(PlantedErrorTest, DrawingFromTheTargetAfterARejectionIsNoticed) {
  for (AcceptanceMethod method : {kRejection, kBlock}) {
    for (const auto& shape : {kChain, kTree}) {
      DraftedText drafted = Sampled(shape, WeightsOf(near_));
      drafted.verify = [](const DraftTree& draft, RowLogits logits, const SamplingRule& rule,
                          int first_output_index, SamplerScratch& scratch, Verdict& out) {
        Verify(draft, logits, rule, first_output_index, scratch, out);
        const int node = out.accepted_nodes.empty() ? kDraftRoot : out.accepted_nodes.back();
        out.tokens.back() = SampleToken(logits.row(node + 1), rule,
                                        first_output_index + out.num_accepted(), scratch);
      };
      EXPECT_GT(SurpriseUnder(method, drafted), kTooSurprising);
    }
  }
}

TEST_F(PlantedErrorTest, SiblingsDrawnWithReplacementAreNoticed) {
  for (AcceptanceMethod method : {kRejection, kBlock}) {
    DraftedText drafted = Sampled({-1, -1, -1}, WeightsOf(near_));
    drafted.draw = [](DraftTree& draft, int node, std::uint64_t seed, int first_output_index) {
      const auto row = draft.RowAfter(node);
      double point = std::accumulate(row.begin(), row.end(), 0.0) *
                     UniformNoise(seed, NoisePurpose::kDraft, first_output_index, draft.size());
      TokenId token = 0;
      while ((point -= row[token]) >= 0) ++token;
      draft.parents.push_back(node);
      draft.tokens.push_back(token);
      draft.confidence.push_back(0.5f);
    };
    EXPECT_GT(SurpriseUnder(method, drafted), kTooSurprising);
  }
}

TEST_F(PlantedErrorTest, ADrafterThatMisstatesItsProbabilitiesIsNoticed) {
  for (AcceptanceMethod method : {kRejection, kBlock}) {
    DraftedText drafted = Sampled(kChain, WeightsOf(near_));
    drafted.cut = [](DraftTree& draft) {
      for (float& weight : draft.weights) weight *= weight;
      RoundDraftRow(draft.weights);
    };
    EXPECT_GT(SurpriseUnder(method, drafted), kTooSurprising);
  }
}

// Why a sampled draft must not be shortened by what it says.
TEST_F(PlantedErrorTest, DroppingNodesThatLookUnlikelyIsNoticed) {
  for (AcceptanceMethod method : {kRejection, kBlock}) {
    DraftedText drafted = Sampled(kChain, WeightsOf(near_));
    drafted.cut = [](DraftTree& draft) {
      int count = 0;
      while (count < draft.size() && draft.confidence[count] > 0.15f) ++count;
      draft.Truncate(count);
    };
    EXPECT_GT(SurpriseUnder(method, drafted), kTooSurprising);
  }
}

// Why noise is keyed by the step's first output index and the node: block verification decides with
// the noise of positions that the next step drafts again.
TEST_F(PlantedErrorTest, DraftNoiseThatTheNextStepUsesAgainIsNoticed) {
  DraftedText drafted = Sampled(kChain, WeightsOf(far_));
  drafted.draw = [](DraftTree& draft, int node, std::uint64_t seed, int first_output_index) {
    const auto row = draft.RowAfter(node);
    double point = std::accumulate(row.begin(), row.end(), 0.0) *
                   UniformNoise(seed, NoisePurpose::kDraft, first_output_index + draft.size(), 0);
    TokenId token = 0;
    while ((point -= row[token]) >= 0) ++token;
    draft.AppendToChain(token, 0.5f);
  };
  EXPECT_GT(SurpriseUnder(kBlock, drafted, 100000), kTooSurprising);
}

}  // namespace
}  // namespace forerun
