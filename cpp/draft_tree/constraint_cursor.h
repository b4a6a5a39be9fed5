// A request's constraint, its current state, and the masks that were computed for the step.
//
// The constraint follows no events: MoveTo names an output, and the cursor rolls the constraint
// back to the common prefix and advances it over the rest. So commits, rejected drafts and
// preemption need no call, and the answers are a function of the output alone.
//
// If the constraint throws something other than a std::exception (an interrupt), the cursor stays
// usable: the next MoveTo restarts the constraint. REQUIRES: MoveTo is the next call then.
#ifndef FORERUN_CPP_DRAFT_TREE_CONSTRAINT_CURSOR_H_
#define FORERUN_CPP_DRAFT_TREE_CONSTRAINT_CURSOR_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "forerun/request_hooks.h"
#include "forerun/types.h"

namespace forerun {

// Begins the message of every failure of a constraint.
inline constexpr char kConstraintFailed[] = "the constraint failed: ";

// Its methods throw HookError with what the constraint threw, from then on at every call.
class ConstraintCursor {
 public:
  // `tokens` holds the prompt now and grows by the committed output, up to `max_tokens` in all.
  // Both must outlive this.
  ConstraintCursor(TokenConstraint& constraint, const std::vector<TokenId>& tokens, int max_tokens,
                   int vocab_size);

  ConstraintCursor(const ConstraintCursor&) = delete;
  ConstraintCursor& operator=(const ConstraintCursor&) = delete;

  TokenConstraint& constraint() const { return constraint_; }

  // Brings the constraint to the state after the committed output and then `path`. False: it allows
  // only a prefix of the path, and is in the state after that.
  bool MoveTo(std::span<const TokenId> path);

  // Appends tokens that certainly come next.
  void AppendForced(std::vector<TokenId>& tokens);

  // Valid until the next step: row 0 after the committed output, row i + 1 after node i of the
  // draft.
  void SetMasks(std::span<const std::uint32_t> words, std::span<const std::string> failures);
  // A bit per token that may be next. Throws HookError where the mask could not be computed.
  std::span<const std::uint32_t> Allowed(int row) const;

  // To be called when the constraint's state is unknown: the next MoveTo restarts it.
  void Invalidate() { is_interrupted_ = true; }

 private:
  template <typename Call>
  void Guarded(const Call& call);
  void Recover();
  // Returns how many tokens the constraint accepted.
  int Advance(std::span<const TokenId> tokens);

  TokenConstraint& constraint_;
  const std::vector<TokenId>& tokens_;
  const std::size_t num_prompt_;
  const int vocab_size_;

  std::vector<TokenId> accepted_;  // the output after which the constraint is
  std::string failure_;            // what the constraint threw
  bool is_interrupted_ = false;    // during a call, and after one that did not return

  // Change in each step.
  std::span<const std::uint32_t> masks_;  // [rows, words]
  std::span<const std::string> mask_failures_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TREE_CONSTRAINT_CURSOR_H_
