// What a request asks for.
#ifndef FORERUN_SAMPLING_PARAMS_H_
#define FORERUN_SAMPLING_PARAMS_H_

#include <cstdint>
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

  bool speculative = true;              // false: this request is decoded plainly
  std::optional<int> max_draft_tokens;  // caps the draft of each step; absent: the engine's limit
};

// Throws InvalidArgument that names the first wrong field.
void CheckSamplingParams(const SamplingParams& params);

}  // namespace forerun

#endif  // FORERUN_SAMPLING_PARAMS_H_
