#include "cpp/verify/row_scan.h"

#include <algorithm>
#include <limits>

#include "cpp/util/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FORERUN_AVX2 __attribute__((target("avx2")))
#endif
// Bodies are compiled into a function of each instruction set.
#define FORERUN_INLINE [[gnu::always_inline]] inline

namespace forerun {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int kLanes = 16;

// Noise is at most -log(1 - u) = 32 ln 2 - log(~bits + 0.5), and reading a float's bits as a number
// gives its log2 from below. kSlack exceeds the rounding of all float steps.
constexpr float kLn2 = 0.69314718f;
constexpr float kNoiseBoundBase = 158.0f;
constexpr float kNoiseBoundStep = 0x1p-23f;
constexpr float kSlack = 1e-3f;

FORERUN_INLINE float MaxOfGroup(const float* logits, bool& has_nan) {
  float maxima[kLanes];
  std::int32_t nan[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) maxima[lane] = kNegativeInfinity;
  for (int i = 0; i < kScanGroup; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float logit = logits[i + lane];
      maxima[lane] = logit > maxima[lane] ? logit : maxima[lane];
      nan[lane] |= logit != logit;
    }
  }
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      maxima[lane] = maxima[lane + width] > maxima[lane] ? maxima[lane + width] : maxima[lane];
      nan[lane] |= nan[lane + width];
    }
  }
  has_nan |= nan[0] != 0;
  return maxima[0];
}

FORERUN_INLINE bool FindGroupMaximaBody(const float* logits, int size, float* group_max) {
  bool has_nan = false;
  int first = 0;
  for (; first + kScanGroup <= size; first += kScanGroup) {
    *group_max++ = MaxOfGroup(logits + first, has_nan);
  }
  if (first == size) return has_nan;
  float padded[kScanGroup];
  std::fill(std::copy(logits + first, logits + size, padded), padded + kScanGroup,
            kNegativeInfinity);
  *group_max = MaxOfGroup(padded, has_nan);
  return has_nan;
}

FORERUN_INLINE double GroupMassAboveBody(const float* logits, float floor, double max_logit,
                                         double inverse_temperature) {
  double sums[kLanes] = {};
  for (int i = 0; i < kScanGroup; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float logit = logits[i + lane];
      const double weight = Weight((logit - max_logit) * inverse_temperature);
      sums[lane] += logit > floor ? weight : 0.0;
    }
  }
  double sum = 0.0;
  for (double lane_sum : sums) sum += lane_sum;
  return sum;
}

std::uint64_t FilterGroupPortable(const NoiseFilter& filter, std::uint32_t first_token,
                                  const float* logits) {
  std::uint64_t mask = 0;
  for (int i = 0; i < kScanGroup; i += 4) {
    const PhiloxBlock noise = Philox(filter.seed, (first_token + i) / 4, filter.output_index);
    for (int word = 0; word < 4; ++word) {
      const float distance = static_cast<float>(~noise.word[word] >> 1) + 0.25f;
      const float bound =
          kLn2 * (kNoiseBoundBase -
                  kNoiseBoundStep * static_cast<float>(std::bit_cast<std::int32_t>(distance)));
      const float scaled = (logits[i + word] - filter.max_logit) * filter.inverse_temperature;
      const bool may_win = scaled + bound >= filter.score_to_beat - kSlack;
      mask |= std::uint64_t{may_win} << (i + word);
    }
  }
  return mask;
}

bool FindGroupMaximaPortable(const float* logits, int size, float* group_max) {
  return FindGroupMaximaBody(logits, size, group_max);
}

double GroupMassAbovePortable(const float* logits, float floor, double max_logit,
                              double inverse_temperature) {
  return GroupMassAboveBody(logits, floor, max_logit, inverse_temperature);
}

#if defined(__x86_64__)

FORERUN_AVX2 bool FindGroupMaximaAvx2(const float* logits, int size, float* group_max) {
  return FindGroupMaximaBody(logits, size, group_max);
}

FORERUN_AVX2 double GroupMassAboveAvx2(const float* logits, float floor, double max_logit,
                                       double inverse_temperature) {
  return GroupMassAboveBody(logits, floor, max_logit, inverse_temperature);
}

// Four Philox counters, one in the low half of each 64-bit lane; the high halves are never read.
struct PhiloxLanes {
  __m256i c0, c1, c2, c3;
};

FORERUN_AVX2 FORERUN_INLINE void PhiloxRound(PhiloxLanes& lanes, __m256i key0, __m256i key1) {
  const __m256i product0 = _mm256_mul_epu32(lanes.c0, _mm256_set1_epi64x(0xD2511F53u));
  const __m256i product1 = _mm256_mul_epu32(lanes.c2, _mm256_set1_epi64x(0xCD9E8D57u));
  lanes.c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), lanes.c1), key0);
  lanes.c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), lanes.c3), key1);
  lanes.c1 = product1;
  lanes.c3 = product0;
}

// The words of the four counters' tokens, in order: out[0] of the first two, out[1] of the others.
FORERUN_AVX2 FORERUN_INLINE void InterleaveWords(const PhiloxLanes& lanes, __m256i out[2]) {
  const __m256i low_halves = _mm256_set1_epi64x(0xffffffff);
  const __m256i words01 =
      _mm256_or_si256(_mm256_and_si256(lanes.c0, low_halves), _mm256_slli_epi64(lanes.c1, 32));
  const __m256i words23 =
      _mm256_or_si256(_mm256_and_si256(lanes.c2, low_halves), _mm256_slli_epi64(lanes.c3, 32));
  const __m256i even = _mm256_unpacklo_epi64(words01, words23);  // counters 0 and 2
  const __m256i odd = _mm256_unpackhi_epi64(words01, words23);   // counters 1 and 3
  out[0] = _mm256_permute2x128_si256(even, odd, 0x20);
  out[1] = _mm256_permute2x128_si256(even, odd, 0x31);
}

FORERUN_AVX2 FORERUN_INLINE std::uint64_t FilterEight(const NoiseFilter& filter, __m256i bits,
                                                      const float* logits) {
  const __m256i complement = _mm256_xor_si256(bits, _mm256_set1_epi32(-1));
  const __m256 distance =
      _mm256_add_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(complement, 1)), _mm256_set1_ps(0.25f));
  const __m256 log2_below = _mm256_mul_ps(_mm256_set1_ps(kNoiseBoundStep),
                                          _mm256_cvtepi32_ps(_mm256_castps_si256(distance)));
  const __m256 bound = _mm256_mul_ps(_mm256_set1_ps(kLn2),
                                     _mm256_sub_ps(_mm256_set1_ps(kNoiseBoundBase), log2_below));
  const __m256 scaled =
      _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(logits), _mm256_set1_ps(filter.max_logit)),
                    _mm256_set1_ps(filter.inverse_temperature));
  const __m256 may_win = _mm256_cmp_ps(_mm256_add_ps(scaled, bound),
                                       _mm256_set1_ps(filter.score_to_beat - kSlack), _CMP_GE_OQ);
  return static_cast<std::uint32_t>(_mm256_movemask_ps(may_win));
}

FORERUN_AVX2 std::uint64_t FilterGroupAvx2(const NoiseFilter& filter, std::uint32_t first_token,
                                           const float* logits) {
  std::uint64_t mask = 0;
  // Two half-groups of 8 counters hide the multiplications' latency.
  for (int half = 0; half < kScanGroup; half += 32) {
    const std::int64_t first_counter = (first_token + half) / 4;
    const __m256i zero = _mm256_setzero_si256();
    const __m256i index_low = _mm256_set1_epi64x(static_cast<std::uint32_t>(filter.output_index));
    const __m256i index_high =
        _mm256_set1_epi64x(static_cast<std::int64_t>(filter.output_index >> 32));
    const __m256i counters =
        _mm256_add_epi64(_mm256_set1_epi64x(first_counter), _mm256_setr_epi64x(0, 1, 2, 3));
    PhiloxLanes a = {counters, zero, index_low, index_high};
    PhiloxLanes b = {_mm256_add_epi64(counters, _mm256_set1_epi64x(4)), zero, index_low,
                     index_high};
    auto key0 = static_cast<std::uint32_t>(filter.seed);
    auto key1 = static_cast<std::uint32_t>(filter.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      PhiloxRound(a, _mm256_set1_epi64x(key0), _mm256_set1_epi64x(key1));
      PhiloxRound(b, _mm256_set1_epi64x(key0), _mm256_set1_epi64x(key1));
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    __m256i bits[4];
    InterleaveWords(a, bits);
    InterleaveWords(b, bits + 2);
    for (int i = 0; i < 4; ++i) {
      mask |= FilterEight(filter, bits[i], logits + half + 8 * i) << (half + 8 * i);
    }
  }
  return mask;
}

constexpr RowScan kAvx2RowScan = {FindGroupMaximaAvx2, FilterGroupAvx2, GroupMassAboveAvx2};

#endif

}  // namespace

const RowScan kPortableRowScan = {FindGroupMaximaPortable, FilterGroupPortable,
                                  GroupMassAbovePortable};

const RowScan& BestRowScan() {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return kAvx2RowScan;
#endif
  return kPortableRowScan;
}

}  // namespace forerun
