#include "cpp/verify/distribution.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "cpp/util/philox.h"
#include "cpp/verify/row_scan.h"

namespace forerun {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kMaxNoise = 22.9;  // above -log(-log(1 - 2^-33))
constexpr RankedToken kKeepAll = {-kInfinity, std::numeric_limits<TokenId>::max()};

bool Before(const RankedToken& a, const RankedToken& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// A row ready to be sampled. The kept tokens are always the first of the order of preference, so
// that the last kept one, the cut, stands for all.
struct Row {
  std::span<const float> logits;
  std::span<const float> group_max;  // padded with -infinity to whole groups of its own
  RankedToken first;                 // of all
  double inverse_temperature;        // unused when greedy
  const RowScan& scan;

  int size() const { return static_cast<int>(logits.size()); }
  double Scaled(float logit) const { return (logit - double{first.logit}) * inverse_temperature; }
  double WeightAt(float logit) const { return Weight(Scaled(logit)); }

  // Calls visit(first token, 64 logits) of the groups for whose maximum `wanted` holds.
  template <typename Wanted, typename Visit>
  void VisitGroups(Wanted wanted, Visit visit) const {
    for (int first_token = 0; first_token < size(); first_token += kScanGroup) {
      if (!wanted(group_max[first_token / kScanGroup])) continue;
      if (first_token + kScanGroup <= size()) {
        visit(first_token, logits.data() + first_token);
      } else {
        float padded[kScanGroup];
        std::fill(std::copy(logits.begin() + first_token, logits.end(), padded),
                  padded + kScanGroup, -kInfinity);
        visit(first_token, padded);
      }
    }
  }
};

[[noreturn]] void ThrowNumericError(std::span<const float> logits) {
  for (std::size_t token = 0; token < logits.size(); ++token) {
    if (std::isnan(logits[token]) || logits[token] == kInfinity) {
      throw NumericError("the logit of token " + std::to_string(token) + " is " +
                         std::to_string(logits[token]));
    }
  }
  throw NumericError("no token can be sampled: every logit is -infinity or suppressed");
}

const RowScan& BestRowScan() {
  static const RowScan* const avx2 = Avx2RowScan();
  return avx2 != nullptr ? *avx2 : kPortableRowScan;
}

double InverseTemperature(double temperature) { return 1.0 / std::clamp(temperature, 1e-30, 1e30); }

double NoiseFromBits(std::uint32_t bits) { return -std::log(-std::log((bits + 0.5) * 0x1p-32)); }

// The logits without tokens that may not be sampled yet.
std::span<const float> Suppress(std::span<const float> logits, const SamplingRule& rule,
                                int output_index, std::vector<float>& copy) {
  if (output_index >= rule.min_tokens || rule.suppressed_before_min.empty()) return logits;
  copy.assign(logits.begin(), logits.end());
  for (TokenId token : rule.suppressed_before_min) {
    if (token >= 0 && token < std::ssize(logits)) copy[token] = -kInfinity;
  }
  return copy;
}

Row ScanRow(std::span<const float> all_logits, const SamplingRule& rule, int output_index,
            SamplerScratch& scratch) {
  const auto logits = Suppress(all_logits, rule, output_index, scratch.logits);
  const int size = static_cast<int>(logits.size());
  const RowScan& scan = BestRowScan();
  const int num_groups = (size + kScanGroup - 1) / kScanGroup;
  scratch.group_max.assign((num_groups + kScanGroup - 1) / kScanGroup * kScanGroup, -kInfinity);
  const bool has_nan = scan.find_group_maxima(logits.data(), size, scratch.group_max.data());
  const auto group = std::ranges::max_element(scratch.group_max);
  if (has_nan || group == scratch.group_max.end() || !std::isfinite(*group)) {
    ThrowNumericError(logits);
  }
  const auto begin = logits.begin() + (group - scratch.group_max.begin()) * kScanGroup;
  const auto first = std::find(begin, logits.end(), *group);
  return {logits,
          scratch.group_max,
          {*group, static_cast<TokenId>(first - logits.begin())},
          InverseTemperature(rule.temperature),
          scan};
}

// The winner of score among the tokens down to `cut`.
RankedToken DrawDownTo(const Row& row, const RankedToken& cut, const SamplingRule& rule,
                       int output_index) {
  RankedToken best = row.first;
  double best_score = GumbelNoise(rule.seed, output_index, best.token);
  NoiseFilter filter = {rule.seed, static_cast<std::uint32_t>(output_index), row.first.logit,
                        static_cast<float>(row.inverse_temperature)};
  const auto wanted = [&](float group_max) {
    return group_max >= cut.logit && row.Scaled(group_max) + kMaxNoise > best_score;
  };
  row.VisitGroups(wanted, [&](TokenId first_token, const float* logits) {
    filter.score_to_beat = static_cast<float>(best_score);
    std::uint64_t mask = row.scan.filter_group(filter, first_token, logits);
    for (; mask != 0; mask &= mask - 1) {
      const int i = std::countr_zero(mask);
      const RankedToken candidate = {logits[i], first_token + i};
      if (Before(cut, candidate)) continue;
      const double score =
          row.Scaled(candidate.logit) + GumbelNoise(rule.seed, output_index, candidate.token);
      if (score > best_score || (score == best_score && candidate.token < best.token)) {
        best = candidate;
        best_score = score;
      }
    }
  });
  return best;
}

RankedToken MinPCut(const Row& row, double min_p) {
  const double floor = row.first.logit + std::log(min_p) / row.inverse_temperature;
  if (floor < std::numeric_limits<float>::lowest()) return kKeepAll;
  const auto rounded = static_cast<float>(floor);
  return {rounded < floor ? std::nextafter(rounded, kInfinity) : rounded, kKeepAll.token};
}

void CollectFrom(const Row& row, float floor, std::vector<RankedToken>& candidates) {
  candidates.clear();
  for (TokenId begin = 0; begin < row.size(); begin += kScanGroup) {
    if (row.group_max[begin / kScanGroup] < floor) continue;
    const TokenId end = std::min(begin + kScanGroup, row.size());
    for (TokenId token = begin; token < end; ++token) {
      if (row.logits[token] >= floor) candidates.push_back({row.logits[token], token});
    }
  }
}

RankedToken TopKCut(const Row& row, int top_k, SamplerScratch& scratch) {
  if (top_k >= row.size()) return kKeepAll;
  // The top_k best groups alone hold top_k logits as high as the least of their maxima.
  float floor = -kInfinity;
  std::vector<float>& maxima = scratch.ordered_maxima;
  if (top_k <= row.size() / kScanGroup) {
    maxima.assign(row.group_max.begin(), row.group_max.end());
    std::nth_element(maxima.begin(), maxima.begin() + top_k - 1, maxima.end(), std::greater<>());
    floor = maxima[top_k - 1];
  }
  CollectFrom(row, floor, scratch.candidates);
  const auto last = scratch.candidates.begin() + top_k - 1;
  std::nth_element(scratch.candidates.begin(), last, scratch.candidates.end(), Before);
  return *last;
}

// The weight of the tokens down to `last`, which need not exist. Exact, and so the same in any
// order.
double MassDownTo(const Row& row, const RankedToken& last) {
  double mass = 0.0;
  std::int64_t num_equal = 0;
  const auto wanted = [&](float group_max) {
    return group_max >= last.logit && row.Scaled(group_max) > kZeroWeight;
  };
  row.VisitGroups(wanted, [&](TokenId first_token, const float* logits) {
    mass += row.scan.group_mass_above(logits, last.logit, row.first.logit, row.inverse_temperature);
    for (int i = 0; i < kScanGroup; ++i) {
      num_equal += logits[i] == last.logit && first_token + i <= last.token;
    }
  });
  return mass + static_cast<double>(num_equal) * row.WeightAt(last.logit);
}

double MassBefore(const Row& row, const RankedToken& token) {
  return MassDownTo(row, {token.logit, token.token - 1});
}

// A part of the kept tokens' weight that is quick to find: that of the first of each group.
double MassOfGroupMaxima(const Row& row, const RankedToken& cut) {
  double mass = 0.0;
  for (std::size_t i = 0; i < row.group_max.size(); i += kScanGroup) {
    mass += row.scan.group_mass_above(row.group_max.data() + i, cut.logit, row.first.logit,
                                      row.inverse_temperature);
  }
  return mass;
}

// The last token in front of `beyond` with less than `wanted` mass before it.
RankedToken TopPCut(const Row& row, const RankedToken& beyond, double wanted,
                    std::vector<RankedToken>& candidates) {
  CollectFrom(row, beyond.logit, candidates);
  auto begin = candidates.begin();
  auto end = std::partition(begin, candidates.end(),
                            [&](const RankedToken& token) { return Before(token, beyond); });
  double mass_before_begin = 0.0;
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, Before);
    double mass = mass_before_begin;
    for (auto token = begin; token != middle; ++token) mass += row.WeightAt(token->logit);
    if (mass < wanted) {
      begin = middle;
      mass_before_begin = mass;
    } else {
      end = middle;
    }
  }
  return *begin;
}

}  // namespace

SamplingRule MakeSamplingRule(const SamplingParams& params, std::uint64_t seed,
                              std::span<const TokenId> suppressed_before_min) {
  return {params.temperature, params.top_k,         params.top_p, params.min_p, seed,
          params.min_tokens,  suppressed_before_min};
}

double GumbelNoise(std::uint64_t seed, int output_index, TokenId token) {
  const auto id = static_cast<std::uint32_t>(token);
  const PhiloxBlock block = Philox(seed, id / 4, static_cast<std::uint32_t>(output_index));
  return NoiseFromBits(block.word[id % 4]);
}

TokenId SampleToken(std::span<const float> logits, const SamplingRule& rule, int output_index,
                    SamplerScratch& scratch) {
  const Row row = ScanRow(logits, rule, output_index, scratch);
  if (rule.temperature == 0.0) return row.first.token;
  RankedToken cut = kKeepAll;
  if (rule.min_p > 0.0) cut = MinPCut(row, rule.min_p);
  if (rule.top_k > 0) cut = std::min(cut, TopKCut(row, rule.top_k, scratch), Before);
  const RankedToken drawn = DrawDownTo(row, cut, rule, output_index);
  if (rule.top_p >= 1.0) return drawn.token;
  // Whoever wins among more tokens and is kept wins among the kept ones.
  const double mass_before = MassBefore(row, drawn);
  if (mass_before < rule.top_p * MassOfGroupMaxima(row, cut)) return drawn.token;
  const double wanted = rule.top_p * MassDownTo(row, cut);
  if (mass_before < wanted) return drawn.token;
  cut = TopPCut(row, drawn, wanted, scratch.candidates);
  return DrawDownTo(row, cut, rule, output_index).token;
}

TokenId SampleTokenSlow(std::span<const float> logits, const SamplingRule& rule, int output_index) {
  std::vector<float> copy;
  logits = Suppress(logits, rule, output_index, copy);
  std::vector<RankedToken> kept;
  for (TokenId token = 0; token < std::ssize(logits); ++token) {
    if (std::isnan(logits[token]) || logits[token] == kInfinity) ThrowNumericError(logits);
    if (logits[token] > -kInfinity) kept.push_back({logits[token], token});
  }
  if (kept.empty()) ThrowNumericError(logits);
  std::ranges::sort(kept, Before);
  if (rule.temperature == 0.0) return kept[0].token;

  const double inverse_temperature = InverseTemperature(rule.temperature);
  const auto scaled = [&, max = double{kept[0].logit}](const RankedToken& token) {
    return (token.logit - max) * inverse_temperature;
  };
  if (rule.min_p > 0.0) {
    const double floor = kept[0].logit + std::log(rule.min_p) / inverse_temperature;
    std::erase_if(kept, [&](const RankedToken& token) { return token.logit < floor; });
  }
  if (rule.top_k > 0 && rule.top_k < std::ssize(kept)) kept.resize(rule.top_k);
  if (rule.top_p < 1.0) {
    double total = 0.0, mass = 0.0;
    for (const RankedToken& token : kept) total += Weight(scaled(token));
    std::size_t num_kept = 0;
    for (; num_kept < kept.size() && mass < rule.top_p * total; ++num_kept) {
      mass += Weight(scaled(kept[num_kept]));
    }
    kept.resize(num_kept);
  }
  TokenId best = kept[0].token;
  double best_score = -std::numeric_limits<double>::infinity();
  for (const RankedToken& token : kept) {
    const double score = scaled(token) + GumbelNoise(rule.seed, output_index, token.token);
    if (score > best_score || (score == best_score && token.token < best)) {
      best = token.token;
      best_score = score;
    }
  }
  return best;
}

}  // namespace forerun
