// Where a request's constraint stands, and how to bring it elsewhere.
//
// The constraint follows no events: whoever asks says behind which path, and the cursor takes back
// what differs from there and advances over the rest. So commits, rejected drafts and preemption
// need no call, and the answers are a function of the output alone.
//
// What the constraint throws that is no std::exception, an interrupt, leaves the cursor usable: the
// next MoveTo starts over. REQUIRES: MoveTo is the next call then.
#ifndef FORERUN_CPP_DRAFT_TREE_CONSTRAINT_CURSOR_H_
#define FORERUN_CPP_DRAFT_TREE_CONSTRAINT_CURSOR_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "forerun/request_hooks.h"
#include "forerun/types.h"

namespace forerun {

// Its methods throw HookError: what the constraint threw, from then on at every call.
class ConstraintCursor {
 public:
  // `tokens` holds the prompt now, and later what is committed behind it, up to `max_tokens` in
  // all. Both must outlive this.
  ConstraintCursor(TokenConstraint& constraint, const std::vector<TokenId>& tokens, int max_tokens,
                   int vocab_size);

  ConstraintCursor(const ConstraintCursor&) = delete;
  ConstraintCursor& operator=(const ConstraintCursor&) = delete;

  // Brings the constraint behind the committed output and then `path`. False: it allows only a
  // beginning of the path, and stands behind that.
  bool MoveTo(std::span<const TokenId> path);

  // A bit per token that may be next. Valid until the next call.
  std::span<const std::uint32_t> Allowed();
  // Appends tokens that surely come next.
  void AppendForced(std::vector<TokenId>& tokens);

 private:
  template <typename Call>
  void Guarded(const Call& call);
  void Recover();
  // Returns how many the constraint took.
  int Advance(std::span<const TokenId> tokens);

  TokenConstraint& constraint_;
  const std::vector<TokenId>& tokens_;
  const std::size_t num_prompt_;
  const int vocab_size_;

  std::vector<TokenId> taken_;  // the output behind which the constraint stands
  std::vector<std::uint32_t> allowed_;
  std::string failure_;          // what the constraint threw
  bool is_interrupted_ = false;  // during a call, and after one that did not return
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TREE_CONSTRAINT_CURSOR_H_
