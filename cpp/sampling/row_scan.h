// The passes over a row of logits that cost time, once for each instruction set that matters.
//
// A row is walked in groups of 64 tokens whose maxima are found first; most of the later work skips
// most groups. Every instruction set gives the same answers: comparisons are exact, weights are
// multiples of 2^-32 whose sums are exact in any order, other sums have one order, and noise is
// only ever filtered here, not decided.
#ifndef FORERUN_CPP_SAMPLING_ROW_SCAN_H_
#define FORERUN_CPP_SAMPLING_ROW_SCAN_H_

#include <cstdint>

#include "cpp/sampling/weight_math.h"
#include "forerun/types.h"

namespace forerun {

enum class Isa;

inline constexpr int kScanGroup = 64;

// Which tokens of a group could still win.
struct NoiseFilter {
  std::uint64_t seed = 0;
  std::uint32_t output_index = 0;
  float max_logit = 0.0f;
  float inverse_temperature = 1.0f;
  float score_to_beat = 0.0f;
  float group_max = __builtin_inff();  // no logit of the group is higher
};

struct RowScan {
  // group_max[g] = the largest of logits [64 g, 64 g + 64) of `size`. Returns whether any is NaN.
  bool (*find_group_maxima)(const float* logits, int size, float* group_max);

  // Bit i is set unless token first_token + i, with logits[i], certainly scores below
  // score_to_beat. first_token is a multiple of 64; there are 64 logits.
  std::uint64_t (*filter_group)(const NoiseFilter& filter, std::uint32_t first_token,
                                const float* logits);

  // The weights of those of 64 logits that are above `floor`, summed.
  double (*group_mass_above)(const float* logits, float floor, double max_logit,
                             double inverse_temperature);

  // The sum of e^(logit - logits[highest]), at least e^-700 each, and e^-700 of `highest` itself:
  // its 1 would round what the others add. REQUIRES: no logit is higher. Always added up in the
  // same order: kSumLanes sums of every kSumLanes-th term, these one after the other, then what
  // remains.
  double (*sum_exp_of_others)(const float* logits, int size, TokenId highest);
};

inline constexpr int kSumLanes = 8;

const RowScan& RowScanOf(Isa isa);
// Of the best instruction set that this machine has.
const RowScan& BestRowScan();

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_ROW_SCAN_H_
