// Where a request's output ends. All tokens are committed by one function, one by one, so that
// end-of-sequence, stop tokens, stop strings, max_tokens and the model's length end the output at
// the same token, also in the middle of an accepted draft.
//
// Stop strings are searched in the text as the request shows it, and in the text with the names of
// the special tokens that it omits: "<|im_end|>" and "big<|im_end|>" match where that token comes.
// In the second text a match may not begin or end inside the name of an omitted token: "|" does not
// match there. The text is cut where the stop string begins, or, with include_stop_str_in_output,
// where it ends, and never shows the names of omitted tokens. Where a stop token also completes a
// stop string, the stop string is the reported reason.
#ifndef FORERUN_CPP_ENGINE_STOP_H_
#define FORERUN_CPP_ENGINE_STOP_H_

#include <span>
#include <string>
#include <vector>

#include "cpp/sched/request.h"

namespace forerun {

// What model and tokenizer define. token_bytes is empty without a tokenizer.
struct StopVocabulary {
  std::vector<TokenId> eos_token_ids;
  std::vector<std::string> token_bytes;
  std::vector<bool> is_special;   // [token_bytes.size()]
  std::size_t longest_token = 0;  // bytes
};

// Reserves memory for CommitToken, so that it cannot fail.
void ReserveTail(const StopVocabulary& vocabulary, Request& request);

// Appends `token` to the request's output and sets its finish_reason if it ends there.
// REQUIRES: the request has not finished.
void CommitToken(const StopVocabulary& vocabulary, TokenId token, Request& request);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_STOP_H_
