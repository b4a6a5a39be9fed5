// Each instruction set's passes against loops that cannot be wrong.
#include "cpp/sampling/row_scan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpp/sampling/sampler.h"
#include "cpp/util/simd/isa.h"

namespace forerun {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class RowScanTest : public ::testing::TestWithParam<Isa> {
 protected:
  const RowScan& scan() const { return RowScanOf(GetParam()); }

  std::vector<float> RandomLogits(int size, float spread) {
    std::normal_distribution<float> normal(0.0f, spread);
    std::vector<float> logits(size);
    for (float& logit : logits) logit = normal(random_);
    return logits;
  }

  std::mt19937 random_{7};
};

TEST(WeightTest, IsTheExponentialOnAGridOfTwoToMinus32) {
  EXPECT_EQ(Weight(0.0), 1.0);
  double previous = 1.0;
  for (double z = 0.0; z > -30.0; z -= 0.00037) {
    const double weight = Weight(z);
    EXPECT_LE(std::abs(weight - std::exp(z)), 0x1p-33 + 1e-11) << z;
    EXPECT_EQ(weight * 0x1p32, std::floor(weight * 0x1p32)) << z;
    EXPECT_LE(weight, previous) << z;
    previous = weight;
  }
}

TEST(WeightTest, VanishesFarFromTheBest) {
  EXPECT_EQ(Weight(kZeroWeight), 0.0);
  EXPECT_EQ(Weight(-1e300), 0.0);
  EXPECT_EQ(Weight(-std::numeric_limits<double>::infinity()), 0.0);
}

TEST_P(RowScanTest, FindsTheMaximumOfEveryGroup) {
  for (int size : {1, 63, 64, 65, 127, 128, 1000}) {
    const std::vector<float> logits = RandomLogits(size, 3.0f);
    std::vector<float> maxima((size + 63) / 64);
    EXPECT_FALSE(scan().find_group_maxima(logits.data(), size, maxima.data()));
    for (int group = 0; group < std::ssize(maxima); ++group) {
      const auto begin = logits.begin() + 64 * group;
      const auto end = logits.begin() + std::min(size, 64 * group + 64);
      EXPECT_EQ(maxima[group], *std::max_element(begin, end)) << size;
    }
  }
}

TEST_P(RowScanTest, SeesANanWhereverItIs) {
  for (int size : {64, 150}) {
    for (int position = 0; position < size; ++position) {
      std::vector<float> logits = RandomLogits(size, 3.0f);
      std::vector<float> maxima(3);
      logits[position] = kNan;
      EXPECT_TRUE(scan().find_group_maxima(logits.data(), size, maxima.data())) << position;
      logits[position] = -kInfinity;
      EXPECT_FALSE(scan().find_group_maxima(logits.data(), size, maxima.data())) << position;
    }
  }
}

TEST_P(RowScanTest, MassIsTheExactSumOfWeights) {
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::vector<float> logits = RandomLogits(64, 5.0f);
    logits[repeat % 64] = -kInfinity;
    const float floor = repeat % 3 == 0 ? -kInfinity : logits[(repeat * 7) % 64];
    const double max = *std::ranges::max_element(logits) + repeat % 2;
    const double inverse_temperature = 0.3 + 0.01 * repeat;
    double sum = 0.0;
    for (float logit : logits) {
      if (logit > floor) sum += Weight((logit - max) * inverse_temperature);
    }
    EXPECT_EQ(scan().group_mass_above(logits.data(), floor, max, inverse_temperature), sum);
  }
}

// Term by term, in the order that row_scan.h documents.
TEST_P(RowScanTest, SumsExponentialsInOneOrder) {
  for (int size : {1, 7, 8, 9, 64, 1000, 1003}) {
    std::vector<float> logits = RandomLogits(size, 5.0f);
    if (size > 5) logits[4] = -kInfinity;
    if (size > 9) logits[9] = -1e30f;
    const double max = *std::ranges::max_element(logits);
    for (int i = 0; i < size; i += 77) logits[i] = static_cast<float>(max);  // ties
    const TokenId highest = 77 * static_cast<int>(random_() % (1 + (size - 1) / 77));
    const auto term = [&](int i) {
      const double z = i == highest ? -700.0 : std::max(logits[i] - max, -700.0);
      return ExpOf<double, std::uint64_t>(z);
    };
    double lanes[kSumLanes] = {}, sum = 0.0;
    int i = 0;
    for (; i + kSumLanes <= size; i += kSumLanes) {
      for (int lane = 0; lane < kSumLanes; ++lane) lanes[lane] += term(i + lane);
    }
    for (double lane : lanes) sum += lane;
    for (; i < size; ++i) sum += term(i);
    EXPECT_EQ(scan().sum_exp_of_others(logits.data(), size, highest), sum) << size;
    double plain = -1.0;
    for (float logit : logits) plain += std::exp(logit - max);
    EXPECT_NEAR(sum, plain, 1e-10 * (1.0 + plain));
  }
}

// The filter may keep losers, but few, and never drops a token that reaches the score.
TEST_P(RowScanTest, FilterKeepsEveryTokenThatReachesTheScore) {
  std::int64_t num_kept = 0, num_reaching = 0;
  for (int repeat = 0; repeat < 4000; ++repeat) {
    const float temperature = 0.2f + 0.001f * static_cast<float>(repeat);
    const std::vector<float> logits = RandomLogits(64, 4.0f);
    NoiseFilter filter;
    filter.seed = std::uint64_t{random_()} << 32 | random_();
    filter.output_index = repeat;
    filter.max_logit = *std::ranges::max_element(logits);
    filter.inverse_temperature = 1.0f / temperature;
    const std::uint32_t first_token = 64 * (random_() % 4096);
    std::vector<double> scores;
    for (int i = 0; i < 64; ++i) {
      scores.push_back((logits[i] - double{filter.max_logit}) / temperature +
                       GumbelNoise(filter.seed, repeat, static_cast<TokenId>(first_token) + i));
    }
    // Exactly one of the scores is the bar, which its own token reaches.
    filter.score_to_beat = static_cast<float>(scores[repeat % 64]);
    const std::uint64_t mask = scan().filter_group(filter, first_token, logits.data());
    for (int i = 0; i < 64; ++i) {
      const bool reaches = scores[i] >= filter.score_to_beat;
      EXPECT_TRUE(!reaches || (mask >> i & 1) != 0) << repeat << " " << i;
      num_reaching += reaches;
    }
    num_kept += std::popcount(mask);
  }
  EXPECT_LT(num_kept, 2 * num_reaching);
}

TEST_P(RowScanTest, FilterDropsMinusInfinity) {
  const std::vector<float> logits(64, -kInfinity);
  NoiseFilter filter;
  filter.score_to_beat = -4.0f;
  EXPECT_EQ(scan().filter_group(filter, 0, logits.data()), 0u);
}

INSTANTIATE_TEST_SUITE_P(Isa, RowScanTest, ::testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace forerun
