// Plain types that every layer shares.
#ifndef FORERUN_TYPES_H_
#define FORERUN_TYPES_H_

#include <cstdint>

namespace forerun {

using TokenId = std::int32_t;
using BlockId = std::int32_t;
using RequestId = std::uint64_t;

enum class FinishReason {
  kNone,      // still running
  kStop,      // an end-of-sequence token, a stop token or a stop string
  kLength,    // max_tokens or max_model_len reached
  kAbort,     // cancelled by the caller
  kError,     // this request failed, and no other
  kDeadline,  // SubmitOptions::deadline has passed
};

// A token's log-probability and its rank, from 1, among all: by descending probability, then by
// ascending id.
struct TokenLogprob {
  TokenId token = -1;
  float logprob = 0.0f;
  std::int32_t rank = 0;

  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};

}  // namespace forerun

#endif  // FORERUN_TYPES_H_
