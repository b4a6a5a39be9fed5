// One row of logits, prepared for queries: which tokens are kept, and what they weigh.
//
// The kept tokens are always the first of the order of preference, so that the last kept one, the
// cut, defines them all. Weights are multiples of 2^-32 whose sums are exact in any order.
#ifndef FORERUN_CPP_SAMPLING_LOGITS_ROW_H_
#define FORERUN_CPP_SAMPLING_LOGITS_ROW_H_

#include <algorithm>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "cpp/sampling/row_scan.h"
#include "cpp/sampling/sampler.h"

namespace forerun {

inline constexpr RankedToken kKeepAll = {-std::numeric_limits<float>::infinity(),
                                         std::numeric_limits<TokenId>::max()};

// The order of preference.
inline bool Before(const RankedToken& a, const RankedToken& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

double InverseTemperature(double temperature);

// Borrows the logits and the scratch.
struct Row {
  std::span<const float> logits;
  std::span<const float> group_max;  // padded with -infinity to whole groups of its own
  RankedToken first;                 // of all
  double inverse_temperature;        // unused when greedy
  const RowScan& scan;

  int size() const { return static_cast<int>(logits.size()); }
  double Scaled(float logit) const { return (logit - double{first.logit}) * inverse_temperature; }
  double WeightAt(float logit) const { return Weight(Scaled(logit)); }

  // Calls visit(first token, 64 logits) of the groups for whose maximum `wanted` holds. Missing
  // logits of the last group are -infinity.
  template <typename Wanted, typename Visit>
  void VisitGroups(Wanted wanted, Visit visit) const {
    for (int first_token = 0; first_token < size(); first_token += kScanGroup) {
      if (!wanted(group_max[first_token / kScanGroup])) continue;
      if (first_token + kScanGroup <= size()) {
        visit(first_token, logits.data() + first_token);
      } else {
        float padded[kScanGroup];
        std::fill(std::copy(logits.begin() + first_token, logits.end(), padded),
                  padded + kScanGroup, -std::numeric_limits<float>::infinity());
        visit(first_token, padded);
      }
    }
  }
};

// What NumericError says: of the first logit that is NaN or +infinity, or where there is no token.
std::string BrokenLogitMessage(TokenId token, float logit);
inline constexpr char kNothingToSample[] =
    "no token can be sampled: every logit is -infinity or ruled out";

// REQUIRES: no token can be sampled from them.
[[noreturn]] void ThrowNumericError(std::span<const float> logits);

// Throws NumericError.
Row ScanRow(std::span<const float> logits, double temperature, SamplerScratch& scratch);

// The cut of min_p and top_k. Either may be off.
RankedToken CutBeforeTopP(const Row& row, const SamplingRule& rule, SamplerScratch& scratch);

// The cut of top_p: of the tokens before `beyond` in the order of preference, the last whose
// preceding mass is below `wanted`.
RankedToken TopPCut(const Row& row, const RankedToken& beyond, double wanted,
                    std::vector<RankedToken>& candidates);

// The weight of the tokens down to `last`, which need not exist.
double MassDownTo(const Row& row, const RankedToken& last);
double MassBefore(const Row& row, const RankedToken& token);

// The sum of a draft's row of weights. Multiples of 2^-32: exact in any order.
double SumOfWeights(std::span<const float> weights);

// A part of the kept tokens' weight that is quick to find: that of the first of each group.
double MassOfGroupMaxima(const Row& row, const RankedToken& cut);

// The target's distribution at an output position: a kept token's weight over the mass of all.
// Borrows the logits and the scratch.
struct KeptTokens {
  Row row;
  RankedToken last;  // the kept tokens are those from row.first down to this one
  double mass;

  // 0 for tokens that are not kept.
  double WeightOf(TokenId token) const;
  // The mass of the kept ones among 64 tokens.
  double MassOfGroup(TokenId first_token, const float* group) const;
};

// Throws NumericError. REQUIRES: rule.temperature > 0.
KeptTokens KeepTokens(std::span<const float> logits, const SamplingRule& rule,
                      SamplerScratch& scratch);

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_LOGITS_ROW_H_
