// The 16-bit floats against arithmetic on doubles: every half and bfloat16, and floats near each
// border between two of them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace {

struct Format {
  int exponent_bits, mantissa_bits;
};
constexpr Format kHalf = {5, 10}, kBfloat = {8, 7};

double Value(unsigned bits, Format format) {
  const int max_exponent = (1 << format.exponent_bits) - 1, bias = max_exponent / 2;
  const int exponent = static_cast<int>(bits >> format.mantissa_bits) & max_exponent;
  const int mantissa = static_cast<int>(bits) & ((1 << format.mantissa_bits) - 1);
  const double sign = (bits & 0x8000u) != 0 ? -1 : 1;
  if (exponent == max_exponent) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  const int whole = exponent == 0 ? mantissa : mantissa + (1 << format.mantissa_bits);
  return sign * std::ldexp(whole, std::max(exponent, 1) - bias - format.mantissa_bits);
}

// The nearest of the two 16-bit numbers around a float, the even one on a tie. An infinity counts
// as the number after the largest, as IEEE 754 has it.
unsigned Nearest(float value, Format format) {
  const unsigned infinity = ((1u << format.exponent_bits) - 1) << format.mantissa_bits;
  const unsigned sign = std::signbit(value) ? 0x8000u : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  unsigned low = 0, high = infinity;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (Value(middle, format) <= magnitude ? low : high) = middle;
  }
  if (std::isinf(value)) return sign | infinity;
  const double largest_step = Value(infinity - 1, format) - Value(infinity - 2, format);
  const double above =
      high == infinity ? Value(infinity - 1, format) + largest_step : Value(high, format);
  const double below_gap = magnitude - Value(low, format), above_gap = above - magnitude;
  if (below_gap != above_gap) return sign | (below_gap < above_gap ? low : high);
  return sign | (low % 2 == 0 ? low : high);
}

template <class Check>
void ForFloatsNear(unsigned bits, Format format, Check check) {
  const double here = Value(bits, format), next = Value(bits + 1, format);
  if (std::isnan(here)) return;
  const double middle = std::isfinite(next) ? (here + next) / 2 : here;
  for (const double value : {here, middle}) {
    const auto center = static_cast<float>(value);
    check(center);
    check(std::nextafter(center, std::numeric_limits<float>::infinity()));
    check(std::nextafter(center, -std::numeric_limits<float>::infinity()));
  }
}

TEST(EmulatedConversionsTest, HalvesAreExactFloats) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float value = __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    const double expected = Value(bits, kHalf);
    if (std::isnan(expected)) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(value), 0x7fffffffu) << bits;
    } else {
      ASSERT_EQ(value, expected) << bits;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000u) != 0) << bits;
      ASSERT_EQ(__half_as_ushort(__float2half(value)), bits);
    }
  }
}

TEST(EmulatedConversionsTest, BfloatsAreExactFloats) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float value = __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(bits)));
    ASSERT_EQ(std::bit_cast<std::uint32_t>(value), bits << 16);
    if (!std::isnan(value)) {
      ASSERT_EQ(__bfloat16_as_ushort(__float2bfloat16(value)), bits);
    }
  }
}

TEST(EmulatedConversionsTest, FloatsRoundToTheNearest) {
  for (unsigned bits = 0; bits < 0xffff; bits += 7) {
    ForFloatsNear(bits, kHalf, [](float value) {
      ASSERT_EQ(__half_as_ushort(__float2half_rn(value)), Nearest(value, kHalf)) << value;
    });
    ForFloatsNear(bits, kBfloat, [](float value) {
      if (std::isnan(value)) return;
      ASSERT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(value)), Nearest(value, kBfloat)) << value;
    });
  }
}

TEST(EmulatedConversionsTest, EachNanBecomesTheSameOne) {
  for (const std::uint32_t bits : {0x7f800001u, 0x7fc00000u, 0xffc12345u, 0xffffffffu}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_EQ(__half_as_ushort(__float2half(nan)), 0x7fff);
    EXPECT_EQ(__bfloat16_as_ushort(__float2bfloat16(nan)), 0x7fff);
  }
}

}  // namespace
