// The functions of RowScan, for the instruction set of the including source. As in every kernel
// (util/simd/isa.h), nothing inline of other headers is called but WeightOf and ExpOf, which are
// always inlined.
#ifndef FORERUN_CPP_SAMPLING_ROW_SCAN_BODY_H_
#define FORERUN_CPP_SAMPLING_ROW_SCAN_BODY_H_

#include <cstdint>

#include "cpp/sampling/row_scan.h"
#include "cpp/util/simd/vec.h"

namespace forerun::FORERUN_ISA {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// Noise is at most -log(1 - u) = 32 ln 2 - log(~bits + 0.5), and a float's bits, read as a number,
// give its log2 from below. kSlack exceeds the rounding of all float steps.
constexpr float kLn2 = 0.69314718f;
constexpr float kNoiseBoundBase = 158.0f;
constexpr float kNoiseBoundStep = 0x1p-23f;
constexpr float kSlack = 1e-3f;

inline float MaxOfGroup(const float* logits, Ints& nan_lanes) {
  Floats maxima = LoadAs<Floats>(logits);
  nan_lanes |= maxima != maxima;
  for (int i = kFloatLanes; i < kScanGroup; i += kFloatLanes) {
    const Floats next = LoadAs<Floats>(logits + i);
    nan_lanes |= next != next;
    maxima = next > maxima ? next : maxima;
  }
  float max = maxima[0];
  for (int lane = 1; lane < kFloatLanes; ++lane) max = maxima[lane] > max ? maxima[lane] : max;
  return max;
}

bool FindGroupMaxima(const float* logits, int size, float* group_max) {
  Ints nan_lanes = {};
  int first = 0;
  for (; first + kScanGroup <= size; first += kScanGroup) {
    *group_max++ = MaxOfGroup(logits + first, nan_lanes);
  }
  if (first < size) {
    float padded[kScanGroup];
    for (int i = 0; i < kScanGroup; ++i) {
      padded[i] = first + i < size ? logits[first + i] : kMinusInfinity;
    }
    *group_max = MaxOfGroup(padded, nan_lanes);
  }
  return MaskOf(nan_lanes) != 0;
}

double GroupMassAbove(const float* logits, float floor, double max_logit,
                      double inverse_temperature) {
  Doubles sums = {};
  for (int i = 0; i < kScanGroup; i += kDoubleLanes) {
    const Doubles logit = __builtin_convertvector(LoadAs<HalfFloats>(logits + i), Doubles);
    const Doubles weight = WeightOf<Doubles, Words>((logit - max_logit) * inverse_temperature);
    sums += logit > static_cast<double>(floor) ? weight : Doubles{};
  }
  double sum = 0.0;
  for (int lane = 0; lane < kDoubleLanes; ++lane) sum += sums[lane];
  return sum;
}

// Adds kSumLanes terms to sums[kSumLanes / kDoubleLanes].
inline void AddExp(const float* logits, double max_logit, Doubles* sums) {
  for (int i = 0; i < kSumLanes / kDoubleLanes; ++i) {
    const auto logit = LoadAs<HalfFloats>(logits + i * kDoubleLanes);
    const Doubles z = __builtin_convertvector(logit, Doubles) - max_logit;
    sums[i] += ExpOf<Doubles, Words>(z < -700.0 ? Doubles{} - 700.0 : z);
  }
}

double SumExpOfOthers(const float* logits, int size, TokenId highest) {
  const double max_logit = logits[highest];
  Doubles sums[kSumLanes / kDoubleLanes] = {};
  const int end = size - size % kSumLanes;
  for (int first = 0; first < end; first += kSumLanes) {
    float others[kSumLanes];
    const bool has_highest = first == highest - highest % kSumLanes;
    for (int lane = 0; has_highest && lane < kSumLanes; ++lane) {
      others[lane] = first + lane == highest ? kMinusInfinity : logits[first + lane];
    }
    AddExp(has_highest ? others : logits + first, max_logit, sums);
  }
  double sum = 0.0;
  for (const Doubles& lanes : sums) {
    for (int lane = 0; lane < kDoubleLanes; ++lane) sum += lanes[lane];
  }
  for (int token = end; token < size; ++token) {
    const double z = token == highest ? -700.0 : logits[token] - max_logit;
    sum += ExpOf<double, std::uint64_t>(z < -700.0 ? -700.0 : z);
  }
  return sum;
}

// One Philox counter in the low half of each 64-bit lane; the high halves are never read.
struct PhiloxLanes {
  Words c0, c1, c2, c3;
};

// The largest word of each lane; meaningless in the high halves.
inline UnsignedInts MaxWords(const PhiloxLanes& lanes) {
  const auto max = [](Words a, Words b) {
    return (UnsignedInts)a > (UnsignedInts)b ? (UnsignedInts)a : (UnsignedInts)b;
  };
  return max((Words)max(lanes.c0, lanes.c1), (Words)max(lanes.c2, lanes.c3));
}

inline void PhiloxRound(PhiloxLanes& lanes, std::uint32_t key0, std::uint32_t key1) {
  const Words product0 = MultiplyLow(lanes.c0, 0xD2511F53u);
  const Words product1 = MultiplyLow(lanes.c2, 0xCD9E8D57u);
  lanes.c0 = (product1 >> 32) ^ lanes.c1 ^ key0;
  lanes.c2 = (product0 >> 32) ^ lanes.c3 ^ key1;
  lanes.c1 = product1;
  lanes.c3 = product0;
}

// The first two rounds of (counters, 0, output_index, 0): most of it is the same in all lanes.
inline PhiloxLanes StartPhilox(Words counters, std::uint32_t output_index, std::uint32_t key0,
                               std::uint32_t key1) {
  const std::uint64_t common = std::uint64_t{output_index} * 0xCD9E8D57u;
  const std::uint64_t next = ((common >> 32) ^ key0) * 0xD2511F53u;
  const Words product0 = MultiplyLow(counters, 0xD2511F53u);
  const Words product1 = MultiplyLow((product0 >> 32) ^ key1, 0xCD9E8D57u);
  key0 += 0x9E3779B9u;
  key1 += 0xBB67AE85u;
  return {(product1 >> 32) ^ ((common & 0xffffffffu) ^ key0), product1,
          product0 ^ ((next >> 32) ^ key1), Words{} + next};
}

// The words of the lanes' counters one counter after the other, which is the order of tokens.
inline void InterleaveWords(const PhiloxLanes& lanes, Ints out[2]) {
  const Words words01 = (lanes.c0 & 0xffffffffu) | (lanes.c1 << 32);
  const Words words23 = (lanes.c2 & 0xffffffffu) | (lanes.c3 << 32);
  Words pairs[2];
  Interleave(words01, words23, pairs);
  out[0] = (Ints)pairs[0];
  out[1] = (Ints)pairs[1];
}

inline std::uint64_t MayWin(const NoiseFilter& filter, Ints bits, Floats logits) {
  const Ints distance_bits = (Ints)(~(UnsignedInts)bits >> 1);
  const Floats distance = __builtin_convertvector(distance_bits, Floats) + 0.25f;
  const Floats log2_below = __builtin_convertvector((Ints)distance, Floats) * kNoiseBoundStep;
  const Floats bound = (kNoiseBoundBase - log2_below) * kLn2;
  const Floats scaled = (logits - filter.max_logit) * filter.inverse_temperature;
  return MaskOf(scaled + bound >= filter.score_to_beat - kSlack);
}

std::uint64_t FilterGroup(const NoiseFilter& filter, std::uint32_t first_token,
                          const float* logits) {
  constexpr int kChains = 4;  // side by side, to hide the multiplications' latency
  const auto key0 = static_cast<std::uint32_t>(filter.seed);
  const auto key1 = static_cast<std::uint32_t>(filter.seed >> 32);
  std::uint64_t mask = 0;
  for (int first = 0; first < kScanGroup; first += kChains * 4 * kDoubleLanes) {
    PhiloxLanes chains[kChains];
    for (int chain = 0; chain < kChains; ++chain) {
      const Words counters = kLaneIndices + ((first_token + first) / 4 + chain * kDoubleLanes);
      chains[chain] = StartPhilox(counters, filter.output_index, key0, key1);
    }
    std::uint32_t round_key0 = key0 + 2 * 0x9E3779B9u;
    std::uint32_t round_key1 = key1 + 2 * 0xBB67AE85u;
    for (int round = 2; round < 10; ++round) {
      for (PhiloxLanes& lanes : chains) PhiloxRound(lanes, round_key0, round_key1);
      round_key0 += 0x9E3779B9u;
      round_key1 += 0xBB67AE85u;
    }
    // Seldom does the best noise of these tokens suffice even for the best logit of the group.
    UnsignedInts best = MaxWords(chains[0]);
    for (int chain = 1; chain < kChains; ++chain) {
      const UnsignedInts other = MaxWords(chains[chain]);
      best = best > other ? best : other;
    }
    const Ints low_halves = (Ints)((Words)best & 0xffffffffu);
    if (MayWin(filter, low_halves, Floats{} + filter.group_max) == 0) continue;
    Ints bits[2 * kChains];
    for (int chain = 0; chain < kChains; ++chain) InterleaveWords(chains[chain], bits + 2 * chain);
    for (int i = 0; i < 2 * kChains; ++i) {
      const int offset = first + i * kFloatLanes;
      mask |= MayWin(filter, bits[i], LoadAs<Floats>(logits + offset)) << offset;
    }
  }
  return mask;
}

}  // namespace

extern const RowScan kRowScan;
const RowScan kRowScan = {FindGroupMaxima, FilterGroup, GroupMassAbove, SumExpOfOthers};

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_SAMPLING_ROW_SCAN_BODY_H_
