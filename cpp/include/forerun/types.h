// Plain types that every layer shares.
#ifndef FORERUN_TYPES_H_
#define FORERUN_TYPES_H_

#include <cstdint>

namespace forerun {

using TokenId = std::int32_t;
using BlockId = std::int32_t;
using RequestId = std::uint64_t;

enum class FinishReason {
  kNone,    // still running
  kStop,    // an end-of-sequence token, a stop token or a stop string
  kLength,  // max_tokens or max_model_len reached
  kAbort,   // cancelled by the caller
  kError,   // this request failed; its neighbours did not
};

}  // namespace forerun

#endif  // FORERUN_TYPES_H_
