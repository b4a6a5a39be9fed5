// An output of an earlier engine, which a drafter of this one may learn from.
#ifndef FORERUN_PAST_OUTPUT_H_
#define FORERUN_PAST_OUTPUT_H_

#include <span>
#include <string_view>

#include "forerun/types.h"

namespace forerun {

struct PastOutput {
  std::span<const TokenId> tokens;
  std::string_view cache_salt = {};  // of its request (SubmitOptions)
};

}  // namespace forerun

#endif  // FORERUN_PAST_OUTPUT_H_
