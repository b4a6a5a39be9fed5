// The logarithm against extended precision. Weights: row_scan_test.cc.
#include "cpp/sampling/weight_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "cpp/sampling/noise.h"
#include "cpp/util/hash.h"
#include "tests/cpp/testing/num_examples.h"

namespace forerun {
namespace {

// Relative to the logarithm.
long double ErrorAt(double x) {
  const long double expected = std::log(static_cast<long double>(x));
  const long double error = std::abs(static_cast<long double>(LogOf(x)) - expected);
  return expected == 0.0L ? error : error / std::abs(expected);
}

TEST(LogOfTest, IsWithinTenToMinus15OfTheLogarithm) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-1022.0, 1023.0), near_one(-1.0, 1.0);
  long double worst = 0.0L;
  for (int i = 0; i < testing::NumExamples(200000, 20000000); ++i) {
    worst = std::max(worst, ErrorAt(std::exp2(exponent(random))));
    // Where s changes its sign, and where the exponent changes.
    worst = std::max(worst, ErrorAt(1.0 + std::exp2(exponent(random) / 20.0) * near_one(random)));
    worst = std::max(worst, ErrorAt(std::sqrt(0.5) * (1.0 + 1e-6 * near_one(random))));
    worst = std::max(worst, ErrorAt((static_cast<double>(random() >> 32) + 0.5) * 0x1p-32));
  }
  EXPECT_LT(worst, 1e-15L);
}

TEST(LogOfTest, HoldsAtTheEndsOfItsDomain) {
  EXPECT_EQ(LogOf(1.0), 0.0);
  for (double x : {std::numeric_limits<double>::min(), std::numeric_limits<double>::max(),
                   std::nextafter(1.0, 0.0), std::nextafter(1.0, 2.0), 0x1p-33, 1.0 - 0x1p-33}) {
    EXPECT_LT(ErrorAt(x), 1e-15L) << x;
  }
}

TEST(Log1pOfTest, IsWithinTwiceTenToMinus15OfTheLogarithm) {
  EXPECT_EQ(Log1pOf(0.0), 0.0);
  EXPECT_EQ(Log1pOf(std::numeric_limits<double>::denorm_min()),
            std::numeric_limits<double>::denorm_min());
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-1022.0, 1022.0), near_zero(-80.0, 20.0);
  for (int i = 0; i < testing::NumExamples(100000, 10000000); ++i) {
    const double x = std::exp2(i % 4 == 0 ? exponent(random) : near_zero(random));
    const long double expected = std::log1p(static_cast<long double>(x));
    ASSERT_LT(std::abs(Log1pOf(x) - expected), 2e-15L * expected) << x;
  }
}

TEST(GumbelNoiseTest, IsPinned) {
  EXPECT_EQ(GumbelOfBits(0), -0x1.90a3aa15a0b5dp+1);
  EXPECT_EQ(GumbelOfBits(0x80000000u), 0x1.774f29c39c0bdp-2);
  EXPECT_EQ(GumbelOfBits(0xffffffffu), 0x1.6dfb516f1cbbfp+4);
  std::uint64_t hash = 0;
  for (std::uint32_t bits = 0; bits < 0xffff0000u; bits += 0xffffu) {
    hash = HashCombine(hash, std::bit_cast<std::uint64_t>(GumbelOfBits(bits)));
  }
  EXPECT_EQ(hash, 0x82fc4301c7626436);
}

TEST(GumbelNoiseTest, StaysWithinItsBounds) {
  EXPECT_GT(GumbelOfBits(0), -3.14);
  EXPECT_LT(GumbelOfBits(0xffffffffu), 22.88);
  EXPECT_LT(GumbelOfBits(0xffffffffu), kMaxNoise);
}

}  // namespace
}  // namespace forerun
