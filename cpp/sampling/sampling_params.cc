#include "forerun/sampling_params.h"

#include <cmath>
#include <sstream>
#include <string>

#include "forerun/error.h"

namespace forerun {
namespace {

template <typename T>
void Require(bool holds, const char* field, T value, const std::string& expected) {
  if (holds) return;
  std::ostringstream text;
  text << value;
  throw InvalidArgument(field, text.str(), expected);
}

void RequireTokenIds(const char* field, const std::vector<TokenId>& tokens) {
  for (TokenId token : tokens) {
    Require(token >= 0, field, token, "token ids, which are never negative");
  }
}

void CheckLogitsOptions(const SamplingParams& params) {
  if (params.allowed_token_ids.has_value()) {
    Require(!params.allowed_token_ids->empty(), "allowed_token_ids", "an empty list",
            "at least one token id, or absent for all tokens");
    RequireTokenIds("allowed_token_ids", *params.allowed_token_ids);
  }
  for (const std::vector<TokenId>& word : params.bad_words) {
    Require(!word.empty(), "bad_words", "a word without tokens", "words of at least one token");
    RequireTokenIds("bad_words", word);
  }
  for (const auto& [token, bias] : params.logit_bias) {
    Require(token >= 0, "logit_bias", token, "token ids, which are never negative");
    Require(bias >= -100.0 && bias <= 100.0, "logit_bias", bias, "numbers in [-100, 100]");
  }
  Require(std::isfinite(params.repetition_penalty) && params.repetition_penalty > 0.0,
          "repetition_penalty", params.repetition_penalty, "a finite number above 0, 1 for none");
  Require(params.frequency_penalty >= -2.0 && params.frequency_penalty <= 2.0, "frequency_penalty",
          params.frequency_penalty, "a number in [-2, 2], 0 for none");
  Require(params.presence_penalty >= -2.0 && params.presence_penalty <= 2.0, "presence_penalty",
          params.presence_penalty, "a number in [-2, 2], 0 for none");
}

void CheckNumLogprobs(const char* field, const std::optional<int>& number) {
  if (!number.has_value()) return;
  Require(*number >= -1, field, *number, "a number of tokens, or -1 for the whole vocabulary");
}

}  // namespace

// Comparisons are written so that NaN fails them.
void CheckSamplingParams(const SamplingParams& params) {
  Require(std::isfinite(params.temperature) && params.temperature >= 0.0, "temperature",
          params.temperature, "a finite number >= 0 (0 is greedy)");
  Require(params.top_k >= -1, "top_k", params.top_k, "a number of tokens, or 0 or -1 for all");
  Require(params.top_p > 0.0 && params.top_p <= 1.0, "top_p", params.top_p,
          "a number in (0, 1], 1 for all");
  Require(params.min_p >= 0.0 && params.min_p <= 1.0, "min_p", params.min_p, "a number in [0, 1]");
  Require(params.max_tokens >= 1, "max_tokens", params.max_tokens, "at least 1");
  Require(params.min_tokens >= 0 && params.min_tokens <= params.max_tokens, "min_tokens",
          params.min_tokens, "0 to max_tokens, which is " + std::to_string(params.max_tokens));
  RequireTokenIds("stop_token_ids", params.stop_token_ids);
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
