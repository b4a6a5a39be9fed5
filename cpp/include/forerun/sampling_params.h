// The parameters of a request.
#ifndef FORERUN_SAMPLING_PARAMS_H_
#define FORERUN_SAMPLING_PARAMS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "forerun/types.h"

namespace forerun {

struct SamplingParams {
  double temperature = 1.0;           // 0 means greedy
  int top_k = 0;                      // 0 or -1: off
  double top_p = 1.0;                 // 1: off
  double min_p = 0.0;                 // 0: off
  std::optional<std::uint64_t> seed;  // absent: derived from the engine's seed and the request id

  int max_tokens = 16;
  int min_tokens = 0;  // end-of-sequence and stop tokens cannot be sampled before this many
  std::vector<TokenId> stop_token_ids;
  std::vector<std::string> stop;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  bool skip_special_tokens = true;  // they are not part of the text that stop strings are found in

  // What changes logits before they are sampled, in this order; see docs/sampling.md.
  std::optional<std::vector<TokenId>> allowed_token_ids;  // absent: all
  std::vector<std::vector<TokenId>> bad_words;  // token sequences that cannot be completed
  std::map<TokenId, double> logit_bias;         // added; from -100 to 100
  double repetition_penalty = 1.0;              // above 0; of prompt and output; 1: off
  double frequency_penalty = 0.0;               // -2 to 2; per occurrence in the output
  double presence_penalty = 0.0;                // -2 to 2; for any occurrence in it

  // Log-probabilities of the model's own logits, before anything above: of the token itself and of
  // this many most probable tokens. -1: of the whole vocabulary. Absent: none.
  std::optional<int> logprobs;         // of output tokens
  std::optional<int> prompt_logprobs;  // of prompt tokens, from the second one on
  // Of output tokens: these tokens instead of the most probable ones.
  std::optional<std::vector<TokenId>> logprob_token_ids;

  bool speculative = true;              // false: this request is decoded plainly
  std::optional<int> max_draft_tokens;  // caps the draft of each step; absent: the engine's limit
};

// Calls visit("name", &SamplingParams::name) for every field.
template <typename Visit>
void VisitSamplingFields(const Visit& visit) {
  using Params = SamplingParams;
  visit("temperature", &Params::temperature);
  visit("top_k", &Params::top_k);
  visit("top_p", &Params::top_p);
  visit("min_p", &Params::min_p);
  visit("seed", &Params::seed);
  visit("max_tokens", &Params::max_tokens);
  visit("min_tokens", &Params::min_tokens);
  visit("stop_token_ids", &Params::stop_token_ids);
  visit("stop", &Params::stop);
  visit("include_stop_str_in_output", &Params::include_stop_str_in_output);
  visit("ignore_eos", &Params::ignore_eos);
  visit("skip_special_tokens", &Params::skip_special_tokens);
  visit("allowed_token_ids", &Params::allowed_token_ids);
  visit("bad_words", &Params::bad_words);
  visit("logit_bias", &Params::logit_bias);
  visit("repetition_penalty", &Params::repetition_penalty);
  visit("frequency_penalty", &Params::frequency_penalty);
  visit("presence_penalty", &Params::presence_penalty);
  visit("logprobs", &Params::logprobs);
  visit("prompt_logprobs", &Params::prompt_logprobs);
  visit("logprob_token_ids", &Params::logprob_token_ids);
  visit("speculative", &Params::speculative);
  visit("max_draft_tokens", &Params::max_draft_tokens);
}

// Throws InvalidArgument that names the first wrong field.
void CheckSamplingParams(const SamplingParams& params);

}  // namespace forerun

#endif  // FORERUN_SAMPLING_PARAMS_H_
