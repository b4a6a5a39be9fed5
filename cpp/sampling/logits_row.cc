#include "cpp/sampling/logits_row.h"

#include <cmath>
#include <functional>
#include <numeric>
#include <string>

namespace forerun {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

// Some position in the order, at most just after `cut`, with at least `wanted` mass before it.
// Looks near the top first, where the mass mostly is.
RankedToken BeyondMass(const Row& row, const RankedToken& cut, double wanted) {
  for (double depth = 2.0; -depth > kZeroWeight; depth *= 2.0) {
    const double floor = row.first.logit - depth / row.inverse_temperature;
    if (floor <= cut.logit) break;
    const RankedToken beyond = {static_cast<float>(floor), kKeepAll.token};
    if (MassDownTo(row, beyond) >= wanted) return beyond;
  }
  return {cut.logit, cut.token == kKeepAll.token ? cut.token : cut.token + 1};
}

}  // namespace

std::string BrokenLogitMessage(TokenId token, float logit) {
  // A NaN's sign means nothing, and arithmetic on devices drops it.
  const std::string value = std::isnan(logit) ? "nan" : std::to_string(logit);
  return "the logit of token " + std::to_string(token) + " is " + value;
}

void ThrowNumericError(std::span<const float> logits) {
  for (std::size_t token = 0; token < logits.size(); ++token) {
    if (std::isnan(logits[token]) || logits[token] == kInfinity) {
      throw NumericError(BrokenLogitMessage(static_cast<TokenId>(token), logits[token]));
    }
  }
  throw NumericError(kNothingToSample);
}

double InverseTemperature(double temperature) { return 1.0 / std::clamp(temperature, 1e-30, 1e30); }

Row ScanRow(std::span<const float> logits, double temperature, SamplerScratch& scratch) {
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
          InverseTemperature(temperature),
          scan};
}

RankedToken CutBeforeTopP(const Row& row, const SamplingRule& rule, SamplerScratch& scratch) {
  RankedToken cut = kKeepAll;
  if (rule.min_p > 0.0) cut = MinPCut(row, rule.min_p);
  if (rule.top_k > 0) cut = std::min(cut, TopKCut(row, rule.top_k, scratch), Before);
  return cut;
}

double MassDownTo(const Row& row, const RankedToken& last) {
  const double weight_of_last = row.WeightAt(last.logit);
  double mass = 0.0;
  std::int64_t num_equal = 0;
  const auto wanted = [&](float group_max) {
    return group_max >= last.logit && row.Scaled(group_max) > kZeroWeight;
  };
  row.VisitGroups(wanted, [&](TokenId first_token, const float* logits) {
    mass += row.scan.group_mass_above(logits, last.logit, row.first.logit, row.inverse_temperature);
    if (weight_of_last == 0.0) return;
    for (int i = 0; i < kScanGroup; ++i) {
      num_equal += logits[i] == last.logit && first_token + i <= last.token;
    }
  });
  return mass + static_cast<double>(num_equal) * weight_of_last;
}

double MassBefore(const Row& row, const RankedToken& token) {
  return MassDownTo(row, {token.logit, token.token - 1});
}

double MassOfGroupMaxima(const Row& row, const RankedToken& cut) {
  double mass = 0.0;
  for (std::size_t i = 0; i < row.group_max.size(); i += kScanGroup) {
    mass += row.scan.group_mass_above(row.group_max.data() + i, cut.logit, row.first.logit,
                                      row.inverse_temperature);
  }
  return mass;
}

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

double SumOfWeights(std::span<const float> weights) {
  constexpr std::size_t kLanes = 8;
  double sums[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= weights.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += weights[i + lane];
  }
  for (; i < weights.size(); ++i) sums[0] += weights[i];
  return std::accumulate(sums, sums + kLanes, 0.0);
}

KeptTokens KeepTokens(std::span<const float> logits, const SamplingRule& rule,
                      SamplerScratch& scratch) {
  const Row row = ScanRow(logits, rule.temperature, scratch);
  RankedToken cut = CutBeforeTopP(row, rule, scratch);
  double mass = MassDownTo(row, cut);
  if (rule.top_p < 1.0) {
    const double wanted = rule.top_p * mass;
    cut = TopPCut(row, BeyondMass(row, cut, wanted), wanted, scratch.candidates);
    mass = MassDownTo(row, cut);
  }
  return {row, cut, mass};
}

double KeptTokens::WeightOf(TokenId token) const {
  if (token < 0 || token >= row.size()) return 0.0;
  const RankedToken ranked = {row.logits[token], token};
  return Before(last, ranked) ? 0.0 : row.WeightAt(ranked.logit);
}

double KeptTokens::MassOfGroup(TokenId first_token, const float* group) const {
  double mass =
      row.scan.group_mass_above(group, last.logit, row.first.logit, row.inverse_temperature);
  const double weight_of_last = row.WeightAt(last.logit);
  if (weight_of_last == 0.0) return mass;
  for (int i = 0; i < kScanGroup; ++i) {
    if (group[i] == last.logit && first_token + i <= last.token) mass += weight_of_last;
  }
  return mass;
}

}  // namespace forerun
