// Where a request's output ends. One function commits one token, so that end-of-sequence, stop
// tokens, stop strings, max_tokens and the model's length all cut at the same place, inside an
// accepted run as anywhere.
//
// A stop string is sought in the text as the request shows it, and in the text with the names of
// the special tokens that it omits: "<|im_end|>" and "big<|im_end|>" stop where that token comes.
// There a special token counts as a whole: "|" does not stop at it. The text is cut where the stop
// string begins, or, with include_stop_str_in_output, where it ends, and never shows the names of
// omitted tokens. A token that ends the text may complete a stop string, which then is the reason.
#ifndef FORERUN_CPP_ENGINE_STOP_H_
#define FORERUN_CPP_ENGINE_STOP_H_

#include <span>
#include <string>
#include <vector>

#include "cpp/sched/request.h"

namespace forerun {

// What a model directory and a tokenizer say about ends. token_bytes is empty when no tokenizer was
// given.
struct StopVocabulary {
  std::vector<TokenId> eos_token_ids;
  std::vector<std::string> token_bytes;
  std::vector<bool> is_special;   // [token_bytes.size()]
  std::size_t longest_token = 0;  // bytes
};

// Makes room for all that CommitToken will do, which then cannot fail.
void ReserveTail(const StopVocabulary& vocabulary, Request& request);

// Appends `token` to the request's output and sets its finish_reason if it ends there.
// REQUIRES: the request has not finished.
void CommitToken(const StopVocabulary& vocabulary, TokenId token, Request& request);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_STOP_H_
