// What a drafter that is a model computed for one guess.
#ifndef FORERUN_DRAFT_RECORD_H_
#define FORERUN_DRAFT_RECORD_H_

#include <vector>

#include "forerun/types.h"

namespace forerun {

// The logits are a function of the target, the drafter, the request's first num_tokens tokens and
// the path alone.
struct DraftRecord {
  RequestId request_id = 0;
  int num_tokens = 0;         // of prompt and output, that were known
  std::vector<TokenId> path;  // the draft's tokens behind them that lead to the guess
  std::vector<float> logits;  // [draft vocabulary]
};

}  // namespace forerun

#endif  // FORERUN_DRAFT_RECORD_H_
