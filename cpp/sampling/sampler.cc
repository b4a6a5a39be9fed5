#include "cpp/sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "cpp/sampling/logits_row.h"
#include "cpp/util/require.h"

namespace forerun {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

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
    filter.group_max = row.group_max[first_token / kScanGroup];
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

double Scaled(const RankedToken& token, const RankedToken& first, double temperature) {
  return (token.logit - double{first.logit}) * InverseTemperature(temperature);
}

// The tokens that `rule` keeps, in order of preference; all of them at temperature 0.
std::vector<RankedToken> KeptTokensSlow(std::span<const float> logits, const SamplingRule& rule) {
  std::vector<RankedToken> kept;
  for (TokenId token = 0; token < std::ssize(logits); ++token) {
    if (std::isnan(logits[token]) || logits[token] == kInfinity) ThrowNumericError(logits);
    if (logits[token] > -kInfinity) kept.push_back({logits[token], token});
  }
  if (kept.empty()) ThrowNumericError(logits);
  std::ranges::sort(kept, Before);
  if (rule.temperature == 0.0) return kept;

  if (rule.min_p > 0.0) {
    const double floor =
        kept[0].logit + std::log(rule.min_p) / InverseTemperature(rule.temperature);
    std::erase_if(kept, [&](const RankedToken& token) { return token.logit < floor; });
  }
  if (rule.top_k > 0 && rule.top_k < std::ssize(kept)) kept.resize(rule.top_k);
  if (rule.top_p < 1.0) {
    const auto weight = [&](const RankedToken& token) {
      return Weight(Scaled(token, kept[0], rule.temperature));
    };
    double total = 0.0, mass = 0.0;
    for (const RankedToken& token : kept) total += weight(token);
    std::size_t num_kept = 0;
    for (; num_kept < kept.size() && mass < rule.top_p * total; ++num_kept) {
      mass += weight(kept[num_kept]);
    }
    kept.resize(num_kept);
  }
  return kept;
}

}  // namespace

void CheckRuleOptions(const SamplingParams& params) {
  Require(std::isfinite(params.temperature) && params.temperature >= 0.0, "temperature",
          params.temperature, "a finite number >= 0 (0 is greedy)");
  Require(params.top_k >= -1, "top_k", params.top_k, "a number of tokens, or 0 or -1 for all");
  Require(params.top_p > 0.0 && params.top_p <= 1.0, "top_p", params.top_p,
          "a number in (0, 1], 1 for all");
  Require(params.min_p >= 0.0 && params.min_p <= 1.0, "min_p", params.min_p, "a number in [0, 1]");
}

SamplingRule MakeSamplingRule(const SamplingParams& params, std::uint64_t seed) {
  return {.temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .seed = seed};
}

TokenId SampleToken(std::span<const float> logits, const SamplingRule& rule, int output_index,
                    SamplerScratch& scratch) {
  const Row row = ScanRow(logits, rule.temperature, scratch);
  if (rule.temperature == 0.0) return row.first.token;
  RankedToken cut = CutBeforeTopP(row, rule, scratch);
  const RankedToken drawn = DrawDownTo(row, cut, rule, output_index);
  if (rule.top_p >= 1.0) return drawn.token;
  // If the winner over a superset is kept, it also wins over the kept tokens.
  const double mass_before = MassBefore(row, drawn);
  if (mass_before < rule.top_p * MassOfGroupMaxima(row, cut)) return drawn.token;
  const double wanted = rule.top_p * MassDownTo(row, cut);
  if (mass_before < wanted) return drawn.token;
  cut = TopPCut(row, drawn, wanted, scratch.candidates);
  return DrawDownTo(row, cut, rule, output_index).token;
}

std::vector<double> KeptWeightsSlow(std::span<const float> logits, const SamplingRule& rule) {
  const std::vector<RankedToken> kept = KeptTokensSlow(logits, rule);
  std::vector<double> weights(logits.size(), 0.0);
  for (const RankedToken& token : kept) {
    weights[token.token] = Weight(Scaled(token, kept[0], rule.temperature));
  }
  return weights;
}

TokenId SampleTokenSlow(std::span<const float> logits, const SamplingRule& rule, int output_index) {
  const std::vector<RankedToken> kept = KeptTokensSlow(logits, rule);
  if (rule.temperature == 0.0) return kept[0].token;
  TokenId best = kept[0].token;
  double best_score = -std::numeric_limits<double>::infinity();
  for (const RankedToken& token : kept) {
    const double score = Scaled(token, kept[0], rule.temperature) +
                         GumbelNoise(rule.seed, output_index, token.token);
    if (score > best_score || (score == best_score && token.token < best)) {
      best = token.token;
      best_score = score;
    }
  }
  return best;
}

}  // namespace forerun
