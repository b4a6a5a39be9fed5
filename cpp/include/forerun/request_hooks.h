// Caller-supplied code that decides about a request's tokens.
//
// Hooks may be called for hypothetical outputs: the committed tokens plus a draft path. Their
// answers must depend on those tokens alone, so that speculation changes nothing. A std::exception
// that a hook throws fails its request with the exception's message, and no other request. Anything
// else leaves Step with all requests unchanged, and the next Step calls the hooks again.
#ifndef FORERUN_REQUEST_HOOKS_H_
#define FORERUN_REQUEST_HOOKS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "forerun/types.h"

namespace forerun {

class ConstraintBatch;

// A grammar in the state that it has after some output, at first after no output. It allows
// end-of-sequence tokens where the output may end.
//
// The engine calls it between Begin and End of its batch, in the thread that calls Step.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // Returns to the state after no output. Called after a call that something other than a
  // std::exception ended, whatever state that left.
  virtual void Restart() = 0;

  // Accepts tokens up to the first one that is not allowed; returns how many.
  virtual int Advance(std::span<const TokenId> tokens) = 0;
  // Takes back the last num_tokens tokens.
  virtual void Rollback(int num_tokens) = 0;

  // Appends tokens that certainly come next, as far as that is cheap to know; none if unsure.
  virtual void AppendForced(std::vector<TokenId>& tokens) = 0;

  // What computes its masks. Must outlive the constraint.
  virtual ConstraintBatch& batch() = 0;
};

// One request's masks of a step: a row after its committed output, in which the constraint is, and
// a row after each node of its draft. Node i is tokens[i] after node parents[i] < i, or after the
// output where that is -1.
struct MaskRequest {
  TokenConstraint* constraint = nullptr;
  std::span<const TokenId> tokens;
  std::span<const std::int32_t> parents;
  int first_row = 0;  // of the output; node i has row first_row + 1 + i
};

struct MaskBatch {
  std::span<const MaskRequest> requests;
  int words_per_row = 0;
  // [rows, words_per_row] out: bit i % 32 of word i / 32 of a row is set if token i may be next,
  // and clear otherwise. Bits beyond the vocabulary are ignored.
  std::span<std::uint32_t> words;
  // [rows] out, empty at first: why a row could not be computed, or that the constraint does not
  // allow the node. Fails the request only if its output gets there.
  std::span<std::string> failures;

  std::span<std::uint32_t> row(int i) const {
    return words.subspan(static_cast<std::size_t>(i) * words_per_row, words_per_row);
  }
};

// Computes the masks of all constraints that share it, once per step. One that needs a lock, such
// as an interpreter's, takes it in Begin.
class ConstraintBatch {
 public:
  virtual ~ConstraintBatch() = default;

  // Come before the first and after the last call of a step, also of one that fails.
  virtual void Begin() {}
  virtual void End() noexcept {}

  // Leaves each constraint in its state, unless something other than a std::exception ends the
  // call. A std::exception fails all the requests.
  virtual void FillMasks(const MaskBatch& masks) = 0;
};

// Changes rows of logits in any way.
class LogitsHook {
 public:
  virtual ~LogitsHook() = default;

  // `logits` [vocab_size] predict the token after the committed `output` and then `path`.
  virtual void Process(std::span<const TokenId> output, std::span<const TokenId> path,
                       std::span<float> logits) = 0;
};

struct RequestHooks {
  std::unique_ptr<TokenConstraint> constraint;
  std::unique_ptr<LogitsHook> logits_hook;
};

}  // namespace forerun

#endif  // FORERUN_REQUEST_HOOKS_H_
