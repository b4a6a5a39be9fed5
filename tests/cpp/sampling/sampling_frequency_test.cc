// How often SampleToken draws what, against the probabilities it promises: chi-square over 200,000
// draws with fixed seeds. Planted errors show that the check would notice.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpp/sampling/sampler.h"
#include "tests/cpp/testing/chi_square.h"

namespace forerun {
namespace {

using testing::kTooSurprising;
using testing::Surprise;

constexpr int kNumDraws = 200000;

using Probabilities = std::vector<double>;

const std::vector<float> kLogits = {1.5f, -0.3f, 0.7f, 2.2f,  -1.0f, 0.0f, 1.9f,
                                    0.4f, -2.5f, 1.1f, -0.8f, 0.9f,  2.0f};

Probabilities Softmax(const std::vector<float>& logits, double temperature) {
  Probabilities probabilities;
  for (float logit : logits) probabilities.push_back(std::exp(logit / temperature));
  const double total = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  for (double& probability : probabilities) probability /= total;
  return probabilities;
}

// Only the listed tokens, in proportion.
Probabilities Restrict(const Probabilities& all, const std::vector<TokenId>& kept) {
  Probabilities probabilities(all.size(), 0.0);
  double total = 0.0;
  for (TokenId token : kept) total += all[token];
  for (TokenId token : kept) probabilities[token] = all[token] / total;
  return probabilities;
}

std::vector<int> DrawOverSeeds(SamplingRule rule) {
  SamplerScratch scratch;
  std::vector<int> counts(kLogits.size());
  for (rule.seed = 0; rule.seed < kNumDraws; ++rule.seed) {
    ++counts[SampleToken(kLogits, rule, /*output_index=*/5, scratch)];
  }
  return counts;
}

TEST(SamplingFrequencyTest, FollowsTheSoftmax) {
  for (double temperature : {0.5, 1.0, 2.0}) {
    SamplingRule rule;
    rule.temperature = temperature;
    EXPECT_LT(Surprise(DrawOverSeeds(rule), Softmax(kLogits, temperature)), kTooSurprising);
  }
}

TEST(SamplingFrequencyTest, TheCheckNoticesAWrongTemperature) {
  SamplingRule rule;
  rule.temperature = 1.05;
  EXPECT_GT(Surprise(DrawOverSeeds(rule), Softmax(kLogits, 1.0)), kTooSurprising);
}

TEST(SamplingFrequencyTest, FollowsTheSoftmaxOverPositionsOfOneSeed) {
  SamplerScratch scratch;
  SamplingRule rule;
  rule.seed = 99;
  std::vector<int> counts(kLogits.size());
  for (int i = 0; i < kNumDraws; ++i) ++counts[SampleToken(kLogits, rule, i, scratch)];
  EXPECT_LT(Surprise(counts, Softmax(kLogits, 1.0)), kTooSurprising);
}

TEST(SamplingFrequencyTest, TopKRenormalises) {
  SamplingRule rule;
  rule.top_k = 4;
  const auto expected = Restrict(Softmax(kLogits, 1.0), {3, 12, 6, 0});
  EXPECT_LT(Surprise(DrawOverSeeds(rule), expected), kTooSurprising);
}

TEST(SamplingFrequencyTest, TopPRenormalises) {
  // Descending: 3 (.221), 12 (.181), 6 (.164), 0 (.110), 9 (.074), 11 (.060), 2 (.049): .86
  SamplingRule rule;
  rule.top_p = 0.8;
  const auto expected = Restrict(Softmax(kLogits, 1.0), {3, 12, 6, 0, 9, 11});
  EXPECT_LT(Surprise(DrawOverSeeds(rule), expected), kTooSurprising);
  const auto one_too_many = Restrict(Softmax(kLogits, 1.0), {3, 12, 6, 0, 9, 11, 2});
  EXPECT_GT(Surprise(DrawOverSeeds(rule), one_too_many), kTooSurprising);
}

TEST(SamplingFrequencyTest, MinPRenormalises) {
  SamplingRule rule;
  rule.min_p = 0.5;  // of token 3's: e^(2.2 - 0.69) = e^1.51
  const auto expected = Restrict(Softmax(kLogits, 1.0), {3, 12, 6});
  EXPECT_LT(Surprise(DrawOverSeeds(rule), expected), kTooSurprising);
}

// Pairs of draws at two positions with one seed: their joint frequencies are products.
TEST(SamplingFrequencyTest, PositionsOfOneSeedAreIndependent) {
  const Probabilities single = Softmax(kLogits, 1.0);
  Probabilities expected;
  for (double first : single) {
    for (double second : single) expected.push_back(first * second);
  }
  for (int distance : {1, 4}) {
    SamplerScratch scratch;
    std::vector<int> counts(expected.size());
    for (std::uint64_t seed = 0; seed < kNumDraws; ++seed) {
      SamplingRule rule;
      rule.seed = seed;
      const TokenId first = SampleToken(kLogits, rule, 7, scratch);
      const TokenId second = SampleToken(kLogits, rule, 7 + distance, scratch);
      ++counts[first * kLogits.size() + second];
    }
    EXPECT_LT(Surprise(counts, expected), kTooSurprising) << distance;
  }
}

TEST(SamplingFrequencyTest, NeighbouringSeedsAreIndependent) {
  const Probabilities single = Softmax(kLogits, 1.0);
  Probabilities expected;
  for (double first : single) {
    for (double second : single) expected.push_back(first * second);
  }
  SamplerScratch scratch;
  std::vector<int> counts(expected.size());
  for (std::uint64_t seed = 0; seed < 2 * kNumDraws; seed += 2) {
    SamplingRule rule;
    rule.seed = seed;
    const TokenId first = SampleToken(kLogits, rule, 0, scratch);
    rule.seed = seed + 1;
    ++counts[first * kLogits.size() + SampleToken(kLogits, rule, 0, scratch)];
  }
  EXPECT_LT(Surprise(counts, expected), kTooSurprising);
}

}  // namespace
}  // namespace forerun
