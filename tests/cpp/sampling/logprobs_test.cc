// Log-probabilities against sums in extended precision, ranks against a full sort.
#include "cpp/sampling/logprobs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace forerun {
namespace {

using Logits = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<TokenLogprob> Logprobs(const Logits& logits, TokenId token, int num_top) {
  SamplerScratch scratch;
  std::vector<TokenLogprob> out;
  AppendLogprobs(logits, token, num_top, scratch, out);
  return out;
}

std::vector<TokenLogprob> NaiveLogprobs(const Logits& logits, TokenId token, int num_top) {
  const long double max = *std::ranges::max_element(logits);
  // Of all but one of the highest, whose 1 would round the sum.
  long double others = std::ranges::count(logits, static_cast<float>(max)) - 1;
  for (float logit : logits) others += logit == max ? 0 : std::exp(logit - max);
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  const auto entry = [&](TokenId t) {
    const auto rank = std::ranges::find(order, t) - order.begin() + 1;
    return TokenLogprob{t, static_cast<float>(logits[t] - max - std::log1p(others)),
                        static_cast<std::int32_t>(rank)};
  };
  std::vector<TokenLogprob> out = {entry(token)};
  const std::size_t count = num_top < 0 ? logits.size() : num_top;
  for (std::size_t i = 0; i < count; ++i) out.push_back(entry(order[i]));
  return out;
}

TEST(LogprobsTest, AreTheLogarithmsOfTheSoftmaxWithRanks) {
  std::mt19937 random(3);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const int size = 1 + static_cast<int>(random() % 400);
    std::normal_distribution<float> normal(0.0f, 0.1f * static_cast<float>(random() % 200));
    Logits logits(size);
    for (float& logit : logits) {
      logit = normal(random);
      if (repeat % 3 == 0) logit = std::round(logit);  // ties
      if (random() % 20 == 0) logit = -kInfinity;
    }
    logits[random() % size] = 1.0f;
    const auto token = static_cast<TokenId>(random() % size);
    const int num_top = static_cast<int>(random() % (size + 2)) - 1;
    const auto got = Logprobs(logits, token, num_top);
    const auto expected = NaiveLogprobs(logits, token, num_top);
    ASSERT_EQ(std::ssize(got), NumLogprobEntries(num_top, size));
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i].token, expected[i].token) << i;
      ASSERT_EQ(got[i].rank, expected[i].rank) << i;
      if (expected[i].logprob == -kInfinity) {
        ASSERT_EQ(got[i].logprob, -kInfinity);
      } else {
        const float step = std::nextafter(std::abs(expected[i].logprob), kInfinity) -
                           std::abs(expected[i].logprob);
        ASSERT_NEAR(got[i].logprob, expected[i].logprob, 1.01f * step);
      }
    }
    // The first entry is the same one that the list has.
    for (std::size_t i = 1; i < got.size(); ++i) {
      EXPECT_TRUE(got[i].token != token || got[i] == got[0]);
    }
  }
}

TEST(LogprobsTest, TiesRankByAscendingId) {
  const auto got = Logprobs({2, 5, 2, 5}, 2, 4);
  EXPECT_EQ(got[0].rank, 4);
  EXPECT_EQ((std::vector<TokenId>{got[1].token, got[2].token, got[3].token, got[4].token}),
            (std::vector<TokenId>{1, 3, 0, 2}));
}

TEST(LogprobsTest, ProbabilitiesOfTheWholeVocabularySumToOne) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  Logits logits(49152);
  for (float& logit : logits) logit = normal(random);
  double sum = 0;
  const auto got = Logprobs(logits, 0, -1);
  for (std::size_t i = 1; i < got.size(); ++i) sum += std::exp(double{got[i].logprob});
  EXPECT_NEAR(sum, 1.0, 1e-6);
}

TEST(LogprobsTest, FarBelowTheBestTheyStayFinite) {
  const auto got = Logprobs({0.0f, -2000.0f}, 1, 0);
  EXPECT_EQ(got[0].logprob, -2000.0f);
  EXPECT_EQ(Logprobs({0.0f, -2000.0f}, 0, 0)[0].logprob, 0.0f);
}

TEST(LogprobsTest, RowsWithoutASoftmaxAreANumericError) {
  for (const Logits& logits :
       {Logits{1.0f, std::nanf("")}, Logits{1.0f, kInfinity}, Logits{-kInfinity, -kInfinity}}) {
    SamplerScratch scratch;
    std::vector<TokenLogprob> out;
    EXPECT_THROW(AppendLogprobs(logits, 0, 1, scratch, out), NumericError);
    EXPECT_TRUE(out.empty());
  }
}

}  // namespace
}  // namespace forerun
