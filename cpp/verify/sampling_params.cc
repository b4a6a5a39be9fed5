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
  for (TokenId token : params.stop_token_ids) {
    Require(token >= 0, "stop_token_ids", token, "token ids, which are never negative");
  }
  for (const std::string& stop : params.stop) {
    Require(!stop.empty(), "stop", "an empty string", "strings of at least one byte");
  }
  if (params.max_draft_tokens.has_value()) {
    Require(*params.max_draft_tokens >= 0, "max_draft_tokens", *params.max_draft_tokens,
            "at least 0, or absent for the engine's limit");
  }
}

}  // namespace forerun
