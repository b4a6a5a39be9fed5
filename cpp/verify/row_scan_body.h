// The bodies of RowScan, for the widest vectors of the including source's instruction set. That
// source may be compiled for more than the machine has, so nothing here may leave it: all is in an
// unnamed namespace, and no template or inline function of another header is called but WeightOf
// and ExpOf.
#ifndef FORERUN_CPP_VERIFY_ROW_SCAN_BODY_H_
#define FORERUN_CPP_VERIFY_ROW_SCAN_BODY_H_

#include <cstdint>

#include "cpp/verify/row_scan.h"
#include "cpp/verify/row_scan_vectors.h"

namespace forerun {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// Noise is at most -log(1 - u) = 32 ln 2 - log(~bits + 0.5), and a float's bits, read as a number,
// give its log2 from below. kSlack exceeds the rounding of all float steps.
constexpr float kLn2 = 0.69314718f;
constexpr float kNoiseBoundBase = 158.0f;
constexpr float kNoiseBoundStep = 0x1p-23f;
constexpr float kSlack = 1e-3f;

inline float MaxOfGroup(const float* logits, Ints& nan_lanes) {
  Floats maxima = Load<Floats>(logits);
  nan_lanes |= maxima != maxima;
  for (int i = kFloatLanes; i < kScanGroup; i += kFloatLanes) {
    const Floats next = Load<Floats>(logits + i);
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
    const Doubles logit = __builtin_convertvector(Load<HalfFloats>(logits + i), Doubles);
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
    const auto logit = Load<HalfFloats>(logits + i * kDoubleLanes);
    const Doubles z = __builtin_convertvector(logit, Doubles) - max_logit;
    sums[i] += ExpOf<Doubles, Words>(z < -700.0 ? Doubles{} - 700.0 : z);
  }
}

double SumExp(const float* logits, int size, double max_logit) {
  Doubles sums[kSumLanes / kDoubleLanes] = {};
  int first = 0;
  for (; first + kSumLanes <= size; first += kSumLanes) AddExp(logits + first, max_logit, sums);
  double sum = 0.0;
  for (const Doubles& lanes : sums) {
    for (int lane = 0; lane < kDoubleLanes; ++lane) sum += lanes[lane];
  }
  for (; first < size; ++first) {
    const double z = logits[first] - max_logit;
    sum += ExpOf<double, std::uint64_t>(z < -700.0 ? -700.0 : z);
  }
  return sum;
}

// One Philox counter in the low half of each 64-bit lane; the high halves are never read.
struct PhiloxLanes {
  Words c0, c1, c2, c3;
};

inline void PhiloxRound(PhiloxLanes& lanes, std::uint32_t key0, std::uint32_t key1) {
  const Words product0 = MultiplyLow(lanes.c0, 0xD2511F53u);
  const Words product1 = MultiplyLow(lanes.c2, 0xCD9E8D57u);
  lanes.c0 = (product1 >> 32) ^ lanes.c1 ^ key0;
  lanes.c2 = (product0 >> 32) ^ lanes.c3 ^ key1;
  lanes.c1 = product1;
  lanes.c3 = product0;
}

// The words of the lanes' counters one counter after the other, which is the order of tokens.
inline void InterleaveWords(const PhiloxLanes& lanes, Ints out[2]) {
  const Words words01 = (lanes.c0 & 0xffffffffu) | (lanes.c1 << 32);
  const Words words23 = (lanes.c2 & 0xffffffffu) | (lanes.c3 << 32);
#if defined(__AVX2__)
  out[0] = (Ints)__builtin_shufflevector(words01, words23, 0, 4, 1, 5);
  out[1] = (Ints)__builtin_shufflevector(words01, words23, 2, 6, 3, 7);
#else
  out[0] = (Ints)__builtin_shufflevector(words01, words23, 0, 2);
  out[1] = (Ints)__builtin_shufflevector(words01, words23, 1, 3);
#endif
}

inline std::uint64_t MayWin(const NoiseFilter& filter, Ints bits, const float* logits) {
  using UnsignedInts = std::uint32_t __attribute__((vector_size(kVectorBytes)));
  const Ints distance_bits = (Ints)(~(UnsignedInts)bits >> 1);
  const Floats distance = __builtin_convertvector(distance_bits, Floats) + 0.25f;
  const Floats log2_below = __builtin_convertvector((Ints)distance, Floats) * kNoiseBoundStep;
  const Floats bound = (kNoiseBoundBase - log2_below) * kLn2;
  const Floats scaled = (Load<Floats>(logits) - filter.max_logit) * filter.inverse_temperature;
  return MaskOf(scaled + bound >= filter.score_to_beat - kSlack);
}

std::uint64_t FilterGroup(const NoiseFilter& filter, std::uint32_t first_token,
                          const float* logits) {
  constexpr int kChains = 2;  // side by side, to hide the multiplications' latency
  std::uint64_t mask = 0;
  for (int first = 0; first < kScanGroup; first += kChains * 4 * kDoubleLanes) {
    PhiloxLanes chains[kChains];
    for (int chain = 0; chain < kChains; ++chain) {
      const Words counters = kLaneIndices + ((first_token + first) / 4 + chain * kDoubleLanes);
      chains[chain] = {counters, Words{}, Words{} + filter.output_index, Words{}};
    }
    auto key0 = static_cast<std::uint32_t>(filter.seed);
    auto key1 = static_cast<std::uint32_t>(filter.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (PhiloxLanes& lanes : chains) PhiloxRound(lanes, key0, key1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    Ints bits[2 * kChains];
    for (int chain = 0; chain < kChains; ++chain) InterleaveWords(chains[chain], bits + 2 * chain);
    for (int i = 0; i < 2 * kChains; ++i) {
      const int offset = first + i * kFloatLanes;
      mask |= MayWin(filter, bits[i], logits + offset) << offset;
    }
  }
  return mask;
}

}  // namespace
}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_ROW_SCAN_BODY_H_
