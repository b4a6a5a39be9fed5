// SampleToken against its slow definition, and the definition's own rules.
#include "cpp/sampling/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace forerun {
namespace {

using Logits = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SamplingRule Greedy() { return {.temperature = 0.0}; }

TokenId Sample(const Logits& logits, const SamplingRule& rule, int output_index = 0) {
  SamplerScratch scratch;
  return SampleToken(logits, rule, output_index, scratch);
}

// The tokens that appear over many seeds.
std::vector<TokenId> Support(const Logits& logits, SamplingRule rule) {
  std::vector<bool> seen(logits.size());
  for (rule.seed = 0; rule.seed < 3000; ++rule.seed) seen[Sample(logits, rule)] = true;
  std::vector<TokenId> tokens;
  for (std::size_t token = 0; token < seen.size(); ++token) {
    if (seen[token]) tokens.push_back(static_cast<TokenId>(token));
  }
  return tokens;
}

std::string ErrorOf(const Logits& logits, const SamplingRule& rule) {
  try {
    Sample(logits, rule);
  } catch (const NumericError& error) {
    return error.what();
  }
  return "none";
}

class RandomRow {
 public:
  explicit RandomRow(int seed) : random_(seed) {
    const int size = Chance(8) ? Uniform(300, 9000) : Uniform(1, 300);
    std::normal_distribution<float> normal(0.0f, 0.5f * static_cast<float>(Uniform(0, 16)));
    const bool ties = Chance(3);
    for (int i = 0; i < size; ++i) {
      const float value = normal(random_);
      logits.push_back(ties ? std::round(value) : value);
      if (Chance(50)) logits.back() = -kInfinity;
    }
    logits[Uniform(0, size - 1)] = Chance(20) ? 1e30f : 1.0f;

    constexpr double kTemperatures[] = {0.0, 1e-310, 1e-6, 0.1, 0.7, 1.0, 1.3, 5.0, 1e9};
    rule.temperature = kTemperatures[Uniform(0, 8)];
    if (Chance(2)) rule.top_k = Uniform(-1, size + 1);
    if (Chance(2)) rule.top_p = Chance(4) ? Unit() * 1e-6 + 1e-300 : 1.0 - Unit();
    if (Chance(3)) rule.min_p = Chance(4) ? 1.0 : std::pow(Unit(), 3);
    rule.seed = std::uint64_t{random_()} << 32 | random_();
  }

  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  Logits logits;
  SamplingRule rule;

 private:
  bool Chance(int one_in) { return Uniform(1, one_in) == 1; }
  double Unit() { return std::uniform_real_distribution<double>(0.0, 1.0)(random_); }

  std::mt19937 random_;
};

TEST(SampleTokenTest, EqualsTheSlowDefinitionOnRandomRows) {
  const char* long_tests = std::getenv("FORERUN_LONG_TESTS");
  const int num_rows = long_tests != nullptr && std::string(long_tests) == "1" ? 40000 : 3000;
  SamplerScratch scratch;
  for (int seed = 0; seed < num_rows; ++seed) {
    RandomRow row(seed);
    for (int output_index = 0; output_index < 5; ++output_index) {
      ASSERT_EQ(SampleToken(row.logits, row.rule, output_index, scratch),
                SampleTokenSlow(row.logits, row.rule, output_index))
          << "row " << seed << ", output index " << output_index;
    }
  }
}

TEST(SampleTokenTest, EqualsTheSlowDefinitionOnALargeVocabulary) {
  SamplerScratch scratch;
  for (float spread : {0.1f, 3.0f}) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0.0f, spread);
    Logits logits(49152);
    for (float& logit : logits) logit = normal(random);
    for (const SamplingRule& rule :
         {SamplingRule{}, SamplingRule{.top_k = 50}, SamplingRule{.top_k = 5000},
          SamplingRule{.top_p = 0.5}, SamplingRule{.top_k = 3000, .top_p = 0.9, .min_p = 0.01}}) {
      for (int i = 0; i < 4; ++i) {
        ASSERT_EQ(SampleToken(logits, rule, i, scratch), SampleTokenSlow(logits, rule, i));
      }
    }
  }
}

TEST(SampleTokenTest, GreedyTakesTheHighestAndTheLowestIdAmongEquals) {
  EXPECT_EQ(Sample({1, 3, 2}, Greedy()), 1);
  EXPECT_EQ(Sample({1, 3, 2, 3}, Greedy()), 1);
  EXPECT_EQ(Sample({0, 0, 0}, Greedy()), 0);
  EXPECT_EQ(Sample({-kInfinity, -5, -kInfinity}, Greedy()), 1);
  for (int size : {64, 65, 200}) {
    for (int first = 0; first < size; ++first) {
      Logits logits(size, -1.0f);
      for (int later = first; later < size; later += 37) logits[later] = 2.0f;
      EXPECT_EQ(Sample(logits, Greedy()), first);
    }
  }
}

TEST(SampleTokenTest, GreedyIgnoresSeedAndPosition) {
  const Logits logits = {0.0f, 0.1f, 0.05f};
  for (int i = 0; i < 50; ++i) {
    SamplingRule rule = Greedy();
    rule.seed = i;
    EXPECT_EQ(Sample(logits, rule, i), 1);
  }
}

TEST(SampleTokenTest, TopKKeepsExactlyKWithLowerIdsFirst) {
  const Logits logits = {0.0f, 1.0f, 0.9f, 1.0f, 0.9f, 0.9f};
  SamplingRule rule;
  rule.top_k = 1;
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{1}));
  rule.top_k = 4;
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{1, 2, 3, 4}));
  rule.top_k = 6;
  EXPECT_EQ(Support(logits, rule).size(), 6u);
  rule.top_k = -1;
  EXPECT_EQ(Support(logits, rule).size(), 6u);
}

TEST(SampleTokenTest, TopPKeepsTheFewestTokensThatReachIt) {
  const Logits logits = {0.0f, 0.0f, 0.0f, 0.0f};  // a quarter each
  SamplingRule rule;
  rule.top_p = 0.5;
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{0, 1}));
  rule.top_p = 0.5000001;
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{0, 1, 2}));
  rule.top_p = 1e-300;
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{0}));
  rule.top_p = 1.0;
  EXPECT_EQ(Support(logits, rule).size(), 4u);
}

TEST(SampleTokenTest, TopPCountsOnlyWhatTopKLeft) {
  const Logits logits = {0.0f, 0.0f, 0.0f, 0.0f};
  SamplingRule rule;
  rule.top_k = 2;
  rule.top_p = 0.5;  // half of two, not of four
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{0}));
}

TEST(SampleTokenTest, MinPIsRelativeToTheMostProbable) {
  const Logits logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  SamplingRule rule;
  rule.min_p = 0.25;
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{0, 1, 2}));
  rule.min_p = 0.35;
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{0, 1}));
  rule.min_p = 1.0;
  EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{0}));
}

TEST(SampleTokenTest, MinPSeesTheTemperature) {
  const Logits logits = {0.0f, -2.0f};
  SamplingRule rule;
  rule.min_p = 0.2;  // e^-2 = 0.135
  EXPECT_EQ(Support(logits, rule).size(), 1u);
  rule.temperature = 2.0;  // e^-1 = 0.37
  EXPECT_EQ(Support(logits, rule).size(), 2u);
}

// Logits on either side of the limit, as close as floats get.
TEST(SampleTokenTest, MinPIsExactAtItsLimit) {
  const float max = 3.3f;
  for (int i = 1; i <= 40; ++i) {
    SamplingRule rule;
    rule.min_p = 0.02 * i;
    const double limit = max + std::log(rule.min_p);
    float above = static_cast<float>(limit);
    if (above < limit) above = std::nextafter(above, kInfinity);
    const float below = std::nextafter(above, -kInfinity);
    ASSERT_LT(below, limit);
    EXPECT_EQ(Support({max, above, below}, rule), (std::vector<TokenId>{0, 1})) << rule.min_p;
  }
}

TEST(SampleTokenTest, LowerTemperaturesApproachGreedy) {
  const Logits logits = {1.0f, 1.001f, 0.5f};
  SamplingRule rule;
  for (double temperature : {1e-6, 1e-30, 1e-310}) {
    rule.temperature = temperature;
    EXPECT_EQ(Support(logits, rule), (std::vector<TokenId>{1}));
  }
}

TEST(SampleTokenTest, NoiseDependsOnSeedPositionAndToken) {
  const double noise = GumbelNoise(1, 2, 3);
  EXPECT_EQ(GumbelNoise(1, 2, 3), noise);
  EXPECT_NE(GumbelNoise(2, 2, 3), noise);
  EXPECT_NE(GumbelNoise(1, 3, 3), noise);
  EXPECT_NE(GumbelNoise(1, 2, 4), noise);
  EXPECT_NE(GumbelNoise(1, 2, 7), noise);
  EXPECT_NE(GumbelNoise(1u | std::uint64_t{1} << 32, 2, 3), noise);
}

// Some two of 2^18 noises of a seed are equal (about 8 pairs are expected). At the highest
// temperature nothing but noise counts.
TEST(SampleTokenTest, EqualScoresGoToTheLowestId) {
  std::map<double, TokenId> token_of;
  TokenId low = 0, high = 0;
  for (TokenId token = 0; token < 262144 && high == 0; ++token) {
    const auto [equal, is_new] = token_of.try_emplace(GumbelNoise(0, 0, token), token);
    if (!is_new) {
      low = equal->second;
      high = token;
    }
  }
  ASSERT_LT(low, high);
  SamplingRule rule;
  rule.temperature = 1e30;
  for (float logit_of_low : {1.0f, 2.0f, 3.0f}) {
    Logits logits(high + 1, -kInfinity);
    logits[low] = logit_of_low;
    logits[high] = 2.0f;
    EXPECT_EQ(Sample(logits, rule), low);
    EXPECT_EQ(SampleTokenSlow(logits, rule, 0), low);
  }
}

TEST(SampleTokenTest, TheLuckiestOfManyTokensWinsAgainstAllOdds) {
  TokenId luckiest = 0;
  SamplingRule rule;
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    for (TokenId token = 64; token < 262144; ++token) {
      if (GumbelNoise(seed, 0, token) > GumbelNoise(rule.seed, 0, luckiest)) {
        luckiest = token;
        rule.seed = seed;
      }
    }
  }
  const double advantage = GumbelNoise(rule.seed, 0, luckiest) - GumbelNoise(rule.seed, 0, 0);
  ASSERT_GT(advantage, 12.0);
  Logits logits(luckiest + 1, -kInfinity);
  logits[0] = 0.0f;
  logits[luckiest] = static_cast<float>(-advantage + 1e-4);
  EXPECT_EQ(Sample(logits, rule), luckiest);
  logits[luckiest] = static_cast<float>(-advantage - 1e-4);
  EXPECT_EQ(Sample(logits, rule), 0);
}

// From the published definition of Philox 4x32-10; pins the noise across versions.
TEST(SampleTokenTest, NoiseOfSeedZeroIsPinned) {
  const std::uint32_t words[] = {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u};
  for (TokenId token = 0; token < 4; ++token) {
    const double u = (words[token] + 0.5) / 4294967296.0;
    EXPECT_EQ(GumbelNoise(0, 0, token), GumbelOfBits(words[token]));
    EXPECT_NEAR(GumbelNoise(0, 0, token), -std::log(-std::log(u)), 1e-14);
  }
}

TEST(SampleTokenTest, UnusableLogitsAreANumericError) {
  SamplingRule rule;
  for (double temperature : {0.0, 1.0}) {
    rule.temperature = temperature;
    EXPECT_EQ(ErrorOf({1.0f, 2.0f}, rule), "none");
    EXPECT_EQ(ErrorOf({1.0f, kNan, kNan}, rule), "the logit of token 1 is nan");
    EXPECT_EQ(ErrorOf({1.0f, 2.0f, kInfinity}, rule), "the logit of token 2 is inf");
    EXPECT_NE(ErrorOf({-kInfinity, -kInfinity}, rule).find("no token can be sampled"),
              std::string::npos);
    EXPECT_NE(ErrorOf({}, rule).find("no token can be sampled"), std::string::npos);
    EXPECT_THROW(SampleTokenSlow(Logits{1.0f, kNan}, rule, 0), NumericError);
  }
}

}  // namespace
}  // namespace forerun
