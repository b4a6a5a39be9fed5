#include "cpp/engine/check_request.h"

#include <cstdint>
#include <optional>

#include "cpp/sampling/logprobs.h"
#include "cpp/util/machine.h"
#include "forerun/error.h"

namespace forerun {
namespace {

void CheckText(const std::string& field, std::span<const TokenId> text, int vocab_size) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] >= 0 && text[i] < vocab_size) continue;
    CheckTokenId(field + "[" + std::to_string(i) + "]", text[i], vocab_size);
  }
}

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

// Considers this request alone, and asks the system only where the prompt is long.
void CheckPromptLogprobMemory(std::size_t num_tokens, const SamplingParams& params,
                              int vocab_size) {
  constexpr std::int64_t kAlwaysFits = 64 << 20;
  if (!params.prompt_logprobs || num_tokens < 2) return;
  const std::int64_t num_rows = static_cast<std::int64_t>(num_tokens) - 1;
  const std::int64_t row_bytes = NumLogprobEntries(*params.prompt_logprobs, vocab_size) *
                                 static_cast<std::int64_t>(sizeof(TokenLogprob));
  if (num_rows * row_bytes <= kAlwaysFits) return;
  const std::optional<std::int64_t> available_bytes = AvailableMemoryBytes();
  if (!available_bytes || num_rows * row_bytes <= *available_bytes) return;
  throw InvalidArgument("prompt_logprobs", std::to_string(*params.prompt_logprobs),
                        "a number whose log-probabilities fit: those of " +
                            std::to_string(num_rows) + " prompt tokens take " +
                            std::to_string(num_rows * row_bytes) + " bytes, and " +
                            std::to_string(*available_bytes) + " are available");
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
  CheckText("prompt", prompt, limits.vocab_size);
  CheckAgainstVocabulary(params, limits.vocab_size);
  if (static_cast<int>(prompt.size()) >= limits.max_model_len) {
    throw InvalidArgument("prompt", std::to_string(prompt.size()) + " tokens",
                          "at most " + std::to_string(limits.max_model_len - 1) +
                              ", which leaves room for one new token within max_model_len = " +
                              std::to_string(limits.max_model_len));
  }
  CheckPromptLogprobMemory(prompt.size(), params, limits.vocab_size);
  if (!params.stop.empty() && !limits.has_token_bytes) {
    throw InvalidArgument("stop", std::to_string(params.stop.size()) + " strings",
                          "none before SetTokenBytes: stop strings need the tokens' bytes");
  }
}

void CheckPrediction(std::span<const TokenId> prediction, const RequestLimits& limits) {
  if (std::ssize(prediction) > limits.max_model_len) {
    throw InvalidArgument("prediction", std::to_string(prediction.size()) + " tokens",
                          "at most " + std::to_string(limits.max_model_len) +
                              ", as many as prompt and output have together");
  }
  CheckText("prediction", prediction, limits.vocab_size);
}

}  // namespace forerun
