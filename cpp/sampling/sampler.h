// From logits to a token: THE definition of sampling.
//
// The token at an output position is a pure function of the position's logits, the rule and the
// position: there is no generator state, so that sampling a token again, in another batch
// or with another drafter, gives the same token.
//
//   temperature 0   the arg-max of the logits; the lowest id among equals.
//   otherwise       the arg-max of score(t) = (logit(t) - max logit) / temperature + noise(t) over
//                   the kept tokens; the lowest id among equals.
//
// With independent standard Gumbel noise that arg-max is a draw from the softmax of the kept
// tokens. The logits are those that LogitsProcessors left. Of their tokens, by descending logit and
// ascending id,
//   min_p keeps those at least min_p times as probable as the first,
//   top_k keeps the first top_k,
//   top_p keeps the fewest that hold at least top_p of the probability that min_p and top_k left.
#ifndef FORERUN_CPP_SAMPLING_SAMPLER_H_
#define FORERUN_CPP_SAMPLING_SAMPLER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/sampling/noise.h"
#include "cpp/util/request_error.h"
#include "forerun/options.h"
#include "forerun/sampling_params.h"
#include "forerun/types.h"

namespace forerun {

// Logits from which no token can be sampled: one is NaN or +infinity, or no token is left. The
// message names the first offender.
class NumericError : public RequestError {
 public:
  using RequestError::RequestError;
};

class LogitsProcessors;

// The parameters that select a token.
struct SamplingRule {
  double temperature = 1.0;  // 0: greedy; else taken as within [1e-30, 1e30]
  int top_k = 0;             // <= 0: all
  double top_p = 1.0;        // 1: all
  double min_p = 0.0;        // 0: all
  std::uint64_t seed = 0;    // key of the noise
  AcceptanceMethod acceptance_method = AcceptanceMethod::kCoupled;
  // Applied by Verify to each row before it is sampled; must outlive the rule. Null: none.
  const LogitsProcessors* processors = nullptr;
};

// Throws InvalidArgument that names the first option out of its range.
void CheckRuleOptions(const SamplingParams& params);

// Without processors. REQUIRES: params passed CheckSamplingParams.
SamplingRule MakeSamplingRule(const SamplingParams& params, std::uint64_t seed);

// A token in the order of preference: higher logits first, lower ids first among equals.
struct RankedToken {
  float logit;
  TokenId token;
};

// Working memory of SampleToken and Verify; one per thread. Grows until it has seen the largest row
// and draft.
struct SamplerScratch {
  std::vector<float> logits;            // [vocab], where processors changed some
  std::vector<float> group_max;         // of every 64 logits
  std::vector<float> ordered_maxima;    // the same, partially sorted
  std::vector<RankedToken> candidates;  // for top_k and top_p
  std::vector<double> node_weights;     // [draft size], of the nodes' tokens after their parents
  std::vector<std::vector<double>> residuals;  // [depth][vocab], where sampled nodes were rejected
};

// Samples output token number `output_index` (0-based) of a request from logits [vocab]. Throws
// NumericError.
TokenId SampleToken(std::span<const float> logits, const SamplingRule& rule, int output_index,
                    SamplerScratch& scratch);

// The same by the shortest route from the definition: full sorts, no shortcuts. For tests.
TokenId SampleTokenSlow(std::span<const float> logits, const SamplingRule& rule, int output_index);

// What SampleToken's probabilities are proportional to: [vocab], multiples of 2^-32, 0 for tokens
// that are not kept. For tests. REQUIRES: rule.temperature > 0.
std::vector<double> KeptWeightsSlow(std::span<const float> logits, const SamplingRule& rule);

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_SAMPLER_H_
