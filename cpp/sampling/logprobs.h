// Log-probabilities of a row of logits: what the softmax says at temperature 1, before any sampling
// option.
//
//   logprob(t) = (logit(t) - max logit) - log(1 + sum over u of e^(logit(u) - max logit))
//
// where u is every token but the first with the highest logit. In double and in an order fixed by
// the vocabulary, then rounded to float: a pure function of the row.
#ifndef FORERUN_CPP_SAMPLING_LOGPROBS_H_
#define FORERUN_CPP_SAMPLING_LOGPROBS_H_

#include <span>
#include <vector>

#include "cpp/sampling/sampler.h"
#include "forerun/types.h"

namespace forerun {

// Entries of one row: the token that is there, then as many of the most probable ones as were asked
// for, by rank; the token can be among them again.
constexpr int NumLogprobEntries(int num_top, int vocab_size) {
  return 1 + (num_top < 0 || num_top > vocab_size ? vocab_size : num_top);
}

// The same of the token that is there and of some other ones, in their order: 1 + others.size()
// entries.
void AppendLogprobsOf(std::span<const float> logits, TokenId token, std::span<const TokenId> others,
                      SamplerScratch& scratch, std::vector<TokenLogprob>& out);

// Appends NumLogprobEntries(num_top, logits.size()) entries. Throws NumericError for a row that has
// no softmax.
void AppendLogprobs(std::span<const float> logits, TokenId token, int num_top,
                    SamplerScratch& scratch, std::vector<TokenLogprob>& out);

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_LOGPROBS_H_
