#include "cpp/engine/check_request.h"

#include <optional>

#include "forerun/error.h"

namespace forerun {
namespace {

void CheckNumLogprobs(const char* field, std::optional<int> number, int vocab_size) {
  if (number.value_or(0) <= vocab_size) return;
  throw InvalidArgument(field, std::to_string(*number),
                        "at most " + std::to_string(vocab_size) +
                            ", the size of the vocabulary, or -1 for all of it");
}

void CheckAgainstVocabulary(const SamplingParams& params, int vocab_size) {
  for (TokenId token : params.stop_token_ids) CheckTokenId("stop_token_ids", token, vocab_size);
  if (params.allowed_token_ids) {
    for (TokenId token : *params.allowed_token_ids) {
      CheckTokenId("allowed_token_ids", token, vocab_size);
    }
  }
  for (const std::vector<TokenId>& word : params.bad_words) {
    for (TokenId token : word) CheckTokenId("bad_words", token, vocab_size);
  }
  if (params.logprob_token_ids) {
    for (TokenId token : *params.logprob_token_ids) {
      CheckTokenId("logprob_token_ids", token, vocab_size);
    }
  }
  for (const auto& [token, bias] : params.logit_bias) CheckTokenId("logit_bias", token, vocab_size);
  CheckNumLogprobs("logprobs", params.logprobs, vocab_size);
  CheckNumLogprobs("prompt_logprobs", params.prompt_logprobs, vocab_size);
}

}  // namespace

void CheckTokenId(const std::string& field, TokenId token, int vocab_size) {
  if (token >= 0 && token < vocab_size) return;
  throw InvalidArgument(field, std::to_string(token),
                        "a token id from 0 to " + std::to_string(vocab_size - 1));
}

void CheckRequest(std::span<const TokenId> prompt, const SamplingParams& params,
                  const RequestLimits& limits) {
  CheckSamplingParams(params);
  if (prompt.empty()) throw InvalidArgument("prompt", "no tokens", "at least one token");
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] >= 0 && prompt[i] < limits.vocab_size) continue;
    CheckTokenId("prompt[" + std::to_string(i) + "]", prompt[i], limits.vocab_size);
  }
  CheckAgainstVocabulary(params, limits.vocab_size);
  if (static_cast<int>(prompt.size()) >= limits.max_model_len) {
    throw InvalidArgument("prompt", std::to_string(prompt.size()) + " tokens",
                          "at most " + std::to_string(limits.max_model_len - 1) +
                              ", which leaves room for one new token within max_model_len = " +
                              std::to_string(limits.max_model_len));
  }
  if (!params.stop.empty() && !limits.has_token_bytes) {
    throw InvalidArgument("stop", std::to_string(params.stop.size()) + " strings",
                          "none before SetTokenBytes: stop strings need the tokens' bytes");
  }
}

}  // namespace forerun
