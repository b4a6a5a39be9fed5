// What a caller's own code may decide about a request's tokens.
//
// Both are asked behind outputs that are not there yet: the committed output and then a path of the
// draft. Their answers must depend on those tokens alone, so that speculation changes nothing. What
// they throw fails their request, with the exception's message, and no other; what is not a
// std::exception leaves Step, and no request has changed: the next Step calls them again.
#ifndef FORERUN_REQUEST_HOOKS_H_
#define FORERUN_REQUEST_HOOKS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "forerun/types.h"

namespace forerun {

// A grammar, as a machine that stands behind some output; behind none at first. It allows
// end-of-sequence tokens where the output may end.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // Goes back to the beginning, where no output is. Called after a call that something else than a
  // std::exception left, wherever that left the machine.
  virtual void Restart() = 0;

  // Takes tokens up to the first one that is not allowed; returns how many.
  virtual int Advance(std::span<const TokenId> tokens) = 0;
  // Takes back the last num_tokens tokens.
  virtual void Rollback(int num_tokens) = 0;

  // Sets bit i % 32 of word i / 32 if token i may be next, and clears it otherwise.
  virtual void FillAllowed(std::span<std::uint32_t> words) = 0;
  // Appends tokens that surely come next; as far as is cheap to say, and none where unsure.
  virtual void AppendForced(std::vector<TokenId>& tokens) = 0;
};

// Changes rows of logits as it likes.
class LogitsHook {
 public:
  virtual ~LogitsHook() = default;

  // `logits` [vocab_size] stand behind the committed `output` and then `path`.
  virtual void Process(std::span<const TokenId> output, std::span<const TokenId> path,
                       std::span<float> logits) = 0;
};

struct RequestHooks {
  std::unique_ptr<TokenConstraint> constraint;
  std::unique_ptr<LogitsHook> logits_hook;
};

}  // namespace forerun

#endif  // FORERUN_REQUEST_HOOKS_H_
