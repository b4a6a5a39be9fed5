// The arithmetic of sampling, once for host and device: the exponential, the logarithm, weights of
// tokens and masses of what is left of them.
//
// Only additions, multiplications and divisions of doubles in a fixed order, none of them fused
// (the compilers are told not to contract), so every processor gives the same bits.
#ifndef FORERUN_CPP_SAMPLING_WEIGHT_MATH_H_
#define FORERUN_CPP_SAMPLING_WEIGHT_MATH_H_

#include <cstdint>

#include "cpp/util/host_device.h"

namespace forerun {

// Weight(z) = 0 from here down.
inline constexpr double kZeroWeight = -23.0;

// e^z for -700 <= z <= 0; the polynomial's error is below 1e-11 of it. Double is double, or a
// vector of them; Bits an unsigned integer, or vector, of the same size.
template <typename Double, typename Bits>
[[gnu::always_inline]] FORERUN_HOST_DEVICE inline Double ExpOf(Double x) {
  constexpr double kLog2E = 0x1.71547652b82fep0;
  constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr double kRoundToInteger = 0x1.8p52;
  // The low bits of `shifted` are the integer nearest to x / ln 2.
  const Double shifted = x * kLog2E + kRoundToInteger;
  const Double exponent = shifted - kRoundToInteger;
  const Double r = (x - exponent * kLn2High) - exponent * kLn2Low;
  Double power = r * (1.0 / 362880) + 1.0 / 40320;
  power = power * r + 1.0 / 5040;
  power = power * r + 1.0 / 720;
  power = power * r + 1.0 / 120;
  power = power * r + 1.0 / 24;
  power = power * r + 1.0 / 6;
  power = power * r + 0.5;
  power = power * r + 1.0;
  power = power * r + 1.0;
  return __builtin_bit_cast(
      Double, __builtin_bit_cast(Bits, power) + (__builtin_bit_cast(Bits, shifted) << 52));
}

// The natural logarithm of a normal number above 0; the error is below 1e-15 of it.
//   x = 2^exponent (1 + s) / (1 - s), with 1 / sqrt(2) <= x / 2^exponent < sqrt(2)
//   log x = exponent ln 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...)
FORERUN_HOST_DEVICE inline double LogOf(double x) {
  constexpr std::uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  const std::uint64_t bits = __builtin_bit_cast(std::uint64_t, x);
  const std::int64_t exponent = static_cast<std::int64_t>(bits - kSqrtHalf) >> 52;
  const double m = __builtin_bit_cast(double, bits - (static_cast<std::uint64_t>(exponent) << 52));
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double rest = z * (2.0 / 23) + 2.0 / 21;
  rest = rest * z + 2.0 / 19;
  rest = rest * z + 2.0 / 17;
  rest = rest * z + 2.0 / 15;
  rest = rest * z + 2.0 / 13;
  rest = rest * z + 2.0 / 11;
  rest = rest * z + 2.0 / 9;
  rest = rest * z + 2.0 / 7;
  rest = rest * z + 2.0 / 5;
  rest = rest * z + 2.0 / 3;
  const auto k = static_cast<double>(exponent);
  return k * kLn2High + (2.0 * s + (s * (z * rest) + k * kLn2Low));
}

// log(1 + x) for x >= 0; the error is below 2e-15 of it, also where 1 + x rounds (the correction by
// x / ((1 + x) - 1) is that of W. Kahan).
FORERUN_HOST_DEVICE inline double Log1pOf(double x) {
  const double u = 1.0 + x;
  return u == 1.0 ? x : LogOf(u) * (x / (u - 1.0));
}

// e^z for z <= 0, rounded to a multiple of 2^-32.
template <typename Double, typename Bits>
[[gnu::always_inline]] FORERUN_HOST_DEVICE inline Double WeightOf(Double z) {
  constexpr double kRoundToWeight = 0x1p20;
  const Double x = z < kZeroWeight - 1.0 ? Double{} + (kZeroWeight - 1.0) : z;
  return (ExpOf<Double, Bits>(x) + kRoundToWeight) - kRoundToWeight;
}
FORERUN_HOST_DEVICE inline double Weight(double z) { return WeightOf<double, std::uint64_t>(z); }

// Sums of tokens' masses that are multiples of this are exact in any order, as they stay below 2.
// Rounds a number in [0, 2).
FORERUN_HOST_DEVICE inline double RoundMass(double mass) { return (mass + 1.0) - 1.0; }

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_WEIGHT_MATH_H_
