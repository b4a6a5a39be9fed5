// How a drafter that has probabilities draws its draft tokens.
//
// Under AcceptanceMethod::kCoupled it draws with the target's own noise: the candidate for output
// token number i is SampleToken(the drafter's logits, the request's rule, i), and the draft needs
// no row. Otherwise draft tokens must not depend on the noise that decides about them:
//
//   FillDraftRow(logits, rule, scratch, draft.AddRowAfter(node, vocab_size));
//   AppendDrawnChild(draft, node, rule.seed, first_output_index);  // as often as children are
//   wanted
//
// first_output_index is that of the draft's first token, the one that Verify will be called with.
// The draws are fresh for every step that commits a token, as Verify needs them, and those of a
// step that is run again are the same.
#ifndef FORERUN_CPP_SAMPLING_DRAFT_SAMPLING_H_
#define FORERUN_CPP_SAMPLING_DRAFT_SAMPLING_H_

#include <cstdint>
#include <span>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/sampling/sampler.h"

namespace forerun {

// row [vocab] = the weights of the tokens that `rule` keeps of `logits`, rounded to float. Throws
// NumericError. REQUIRES: rule.temperature > 0.
void FillDraftRow(std::span<const float> logits, const SamplingRule& rule, SamplerScratch& scratch,
                  std::span<float> row);

// Makes each of the weights or probabilities in [0, 1] a multiple of 2^-32.
void RoundDraftRow(std::span<float> row);

// Draws one more child of `node` from the row after it, without replacement. False, and nothing
// appended, when every token with weight is a child already.
// REQUIRES: the row after `node` was filled.
bool AppendDrawnChild(DraftTree& draft, int node, std::uint64_t seed, int first_output_index);

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_DRAFT_SAMPLING_H_
