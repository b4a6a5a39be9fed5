#include "cpp/tensor/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace forerun {
namespace {

// From the definition of a small float: sign, exponent, fraction, each worth what it is worth.
double ValueOf(std::uint16_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double fraction = std::ldexp(bits & ((1 << fraction_bits) - 1), -fraction_bits);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1.0 + fraction, exponent - bias);
}

void ExpectSameValue(float got, double expected, int bits) {
  if (std::isnan(expected)) {
    ASSERT_TRUE(std::isnan(got)) << bits;
  } else {
    ASSERT_EQ(static_cast<double>(got), expected) << bits;
    ASSERT_EQ(std::signbit(got), std::signbit(expected)) << bits;
  }
}

TEST(DTypeTest, EveryBFloat16HasItsValue) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    ExpectSameValue(BFloat16ToFloat(static_cast<std::uint16_t>(bits)),
                    ValueOf(static_cast<std::uint16_t>(bits), 8, 7), bits);
  }
}

TEST(DTypeTest, EveryFloat16HasItsValue) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    ExpectSameValue(Float16ToFloat(static_cast<std::uint16_t>(bits)),
                    ValueOf(static_cast<std::uint16_t>(bits), 5, 10), bits);
  }
}

TEST(DTypeTest, EveryBFloat16SurvivesARoundTrip) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float value = BFloat16ToFloat(static_cast<std::uint16_t>(bits));
    const std::uint16_t again = FloatToBFloat16(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(BFloat16ToFloat(again))) << bits;
    } else {
      ASSERT_EQ(again, bits);
    }
  }
}

// Between two neighbours: the nearer one, the even one in the middle. For every pair of finite
// neighbours, the one beyond the largest being infinity.
TEST(DTypeTest, RoundsToTheNearestBFloat16TiesToEven) {
  for (int bits = 0; bits < 0x7f80; ++bits) {
    const std::uint32_t low = static_cast<std::uint32_t>(bits) << 16;
    const int even = bits % 2 == 0 ? bits : bits + 1;
    for (std::uint32_t sign : {0x0000u, 0x8000u}) {
      const auto rounded = [&](std::uint32_t fraction) {
        return FloatToBFloat16(std::bit_cast<float>((sign << 16) | low | fraction)) ^ sign;
      };
      ASSERT_EQ(rounded(0x0001), static_cast<std::uint32_t>(bits));
      ASSERT_EQ(rounded(0x7fff), static_cast<std::uint32_t>(bits));
      ASSERT_EQ(rounded(0x8000), static_cast<std::uint32_t>(even));
      ASSERT_EQ(rounded(0x8001), static_cast<std::uint32_t>(bits + 1));
      ASSERT_EQ(rounded(0xffff), static_cast<std::uint32_t>(bits + 1));
    }
  }
}

TEST(DTypeTest, ANaNWhosePayloadIsCutOffStaysANaN) {
  for (std::uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7f80ffffu}) {
    const float value = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(value)))) << bits;
  }
}

TEST(DTypeTest, SizesAreBytes) {
  EXPECT_EQ(SizeOf(DType::kFloat32), sizeof(float));
  EXPECT_EQ(SizeOf(DType::kBFloat16), 2u);
  EXPECT_EQ(SizeOf(DType::kFloat16), 2u);
  EXPECT_EQ(SizeOf(DType::kInt64), 8u);
  EXPECT_STREQ(Name(DType::kBFloat16), "bfloat16");
}

}  // namespace
}  // namespace forerun
