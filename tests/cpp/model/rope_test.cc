// Rotary tables against the definition, evaluated at every position in double precision.
#include "cpp/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace forerun {
namespace {

TEST(RopeTest, DefaultFrequenciesAreAGeometricSeries) {
  RopeSpec spec;
  spec.theta = 256.0;
  EXPECT_EQ(RopeFrequencies(spec, 8), (std::vector<double>{1.0, 0.25, 1.0 / 16, 1.0 / 64}));
  spec.scaling = RopeScaling::kLinear;
  spec.factor = 2.0;
  EXPECT_EQ(RopeFrequencies(spec, 8), (std::vector<double>{0.5, 0.125, 1.0 / 32, 1.0 / 128}));
}

TEST(RopeTest, Llama3KeepsShortWavesAndSlowsLongOnes) {
  RopeSpec spec;
  spec.theta = 256.0;
  spec.scaling = RopeScaling::kLlama3;
  spec.factor = 8.0;
  spec.low_freq_factor = 1.0;
  spec.high_freq_factor = 4.0;
  // Frequency 1 turns eight times within the original context, 1/4 twice, 1/16 half a time.
  spec.original_max_position = static_cast<int>(std::lround(16 * std::numbers::pi));
  const double turns = spec.original_max_position / (8.0 * std::numbers::pi);
  const double keep = (turns - 1.0) / 3.0;
  const std::vector<double> frequencies = RopeFrequencies(spec, 8);
  EXPECT_EQ(frequencies[0], 1.0);
  EXPECT_NEAR(frequencies[1], 0.25 * (keep + (1.0 - keep) / 8.0), 1e-15);
  EXPECT_EQ(frequencies[2], 1.0 / 128);
  EXPECT_EQ(frequencies[3], 1.0 / 512);
}

TEST(RopeTest, TheTableHoldsCosinesThenSinesOfEveryPosition) {
  RopeSpec spec;
  spec.attention_factor = 1.25;
  constexpr int kHeadDim = 16, kNumPositions = 5000;
  const std::vector<double> frequencies = RopeFrequencies(spec, kHeadDim);
  const std::vector<float> table = MakeRopeTable(spec, kHeadDim, kNumPositions);
  for (int position = 0; position < kNumPositions; ++position) {
    for (int i = 0; i < kHeadDim / 2; ++i) {
      const float* row = table.data() + position * kHeadDim;
      ASSERT_NEAR(row[i], 1.25 * std::cos(position * frequencies[i]), 1e-7) << position;
      ASSERT_NEAR(row[kHeadDim / 2 + i], 1.25 * std::sin(position * frequencies[i]), 1e-7);
    }
  }
}

}  // namespace
}  // namespace forerun
