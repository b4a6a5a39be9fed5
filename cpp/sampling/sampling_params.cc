#include "forerun/sampling_params.h"

#include <string>

#include "cpp/sampling/logits_processors.h"
#include "cpp/sampling/sampler.h"
#include "cpp/util/require.h"

namespace forerun {
namespace {

void CheckNumLogprobs(const char* field, const std::optional<int>& number) {
  if (!number.has_value()) return;
  Require(*number >= -1, field, *number, "a number of tokens, or -1 for the whole vocabulary");
}

}  // namespace

void CheckSamplingParams(const SamplingParams& params) {
  CheckRuleOptions(params);
  Require(params.max_tokens >= 1, "max_tokens", params.max_tokens, "at least 1");
  Require(params.min_tokens >= 0 && params.min_tokens <= params.max_tokens, "min_tokens",
          params.min_tokens, "0 to max_tokens, which is " + std::to_string(params.max_tokens));
  for (TokenId token : params.stop_token_ids) RequireTokenId("stop_token_ids", token);
  for (const std::string& stop : params.stop) {
    Require(!stop.empty(), "stop", "an empty string", "strings of at least one byte");
  }
  CheckLogitsOptions(params);
  CheckNumLogprobs("logprobs", params.logprobs);
  CheckNumLogprobs("prompt_logprobs", params.prompt_logprobs);
  if (params.max_draft_tokens.has_value()) {
    Require(*params.max_draft_tokens >= 0, "max_draft_tokens", *params.max_draft_tokens,
            "at least 0, or absent for the engine's limit");
  }
}

}  // namespace forerun
