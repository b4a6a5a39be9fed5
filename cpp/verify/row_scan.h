// The passes over a row of logits that cost time, each for the instruction sets that matter.
//
// A row is walked in groups of 64 tokens whose maxima are found first; most of the later work skips
// most groups. Every instruction set gives the same answers: comparisons are exact, weights are
// sums of few enough multiples of 2^-32 to be exact in any order, and noise is only ever filtered
// here, not decided.
#ifndef FORERUN_CPP_VERIFY_ROW_SCAN_H_
#define FORERUN_CPP_VERIFY_ROW_SCAN_H_

#include <bit>
#include <cstdint>

namespace forerun {

inline constexpr int kScanGroup = 64;

// e^z for z <= 0, rounded to a multiple of 2^-32; the polynomial's own error is below 1e-11. Zero
// from kZeroWeight down.
inline double Weight(double z) {
  constexpr double kLog2E = 0x1.71547652b82fep0;
  constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr double kRoundToInteger = 0x1.8p52, kRoundToWeight = 0x1p20;
  const double x = z < -24.0 ? -24.0 : z;
  // The low bits of `shifted` are the integer nearest to x / ln 2.
  const double shifted = x * kLog2E + kRoundToInteger;
  const double exponent = shifted - kRoundToInteger;
  const double r = (x - exponent * kLn2High) - exponent * kLn2Low;
  double power = 1.0 / 362880;
  power = power * r + 1.0 / 40320;
  power = power * r + 1.0 / 5040;
  power = power * r + 1.0 / 720;
  power = power * r + 1.0 / 120;
  power = power * r + 1.0 / 24;
  power = power * r + 1.0 / 6;
  power = power * r + 0.5;
  power = power * r + 1.0;
  power = power * r + 1.0;
  const double weight = std::bit_cast<double>(std::bit_cast<std::uint64_t>(power) +
                                              (std::bit_cast<std::uint64_t>(shifted) << 52));
  return (weight + kRoundToWeight) - kRoundToWeight;
}
inline constexpr double kZeroWeight = -23.0;

// Which tokens of a group could still win.
struct NoiseFilter {
  std::uint64_t seed = 0;
  std::uint64_t output_index = 0;
  float max_logit = 0.0f;
  float inverse_temperature = 1.0f;
  float score_to_beat = 0.0f;
};

struct RowScan {
  // group_max[g] = the largest of logits [64 g, 64 g + 64) of `size`. Returns whether any is NaN.
  bool (*find_group_maxima)(const float* logits, int size, float* group_max);

  // Bit i is set unless token first_token + i, with logits[i], certainly scores below
  // score_to_beat. first_token is a multiple of 4; there are 64 logits.
  std::uint64_t (*filter_group)(const NoiseFilter& filter, std::uint32_t first_token,
                                const float* logits);

  // The weights of the 64 logits above `floor`, summed.
  double (*group_mass_above)(const float* logits, float floor, double max_logit,
                             double inverse_temperature);
};

extern const RowScan kPortableRowScan;
// The best for this machine.
const RowScan& BestRowScan();

}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_ROW_SCAN_H_
