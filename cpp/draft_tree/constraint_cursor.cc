#include "cpp/draft_tree/constraint_cursor.h"

#include <algorithm>
#include <exception>

#include "cpp/util/request_error.h"

namespace forerun {
namespace {

std::size_t CommonLength(std::span<const TokenId> a, std::span<const TokenId> b) {
  return std::ranges::mismatch(a, b).in1 - a.begin();
}

}  // namespace

ConstraintCursor::ConstraintCursor(TokenConstraint& constraint, const std::vector<TokenId>& tokens,
                                   int max_tokens, int vocab_size)
    : constraint_(constraint),
      tokens_(tokens),
      num_prompt_(tokens.size()),
      vocab_size_(vocab_size),
      allowed_((vocab_size + 31) / 32) {
  taken_.reserve(max_tokens - num_prompt_);
}

template <typename Call>
void ConstraintCursor::Guarded(const Call& call) {
  if (!failure_.empty()) throw HookError(failure_);
  is_interrupted_ = true;
  try {
    call();
  } catch (const std::exception& error) {
    failure_ = std::string("the constraint failed: ") + error.what();
    throw HookError(failure_);
  }
  is_interrupted_ = false;
}

// After a call that was interrupted the constraint's state is unknown.
void ConstraintCursor::Recover() {
  if (!is_interrupted_) return;
  Guarded([&] { constraint_.Restart(); });
  taken_.clear();
}

int ConstraintCursor::Advance(std::span<const TokenId> tokens) {
  int num_taken = 0;
  if (!tokens.empty()) Guarded([&] { num_taken = constraint_.Advance(tokens); });
  if (num_taken < 0 || num_taken > std::ssize(tokens)) {
    throw HookError("the constraint took " + std::to_string(num_taken) + " of " +
                    std::to_string(tokens.size()) + " tokens");
  }
  taken_.insert(taken_.end(), tokens.begin(), tokens.begin() + num_taken);
  return num_taken;
}

bool ConstraintCursor::MoveTo(std::span<const TokenId> path) {
  Recover();
  const auto output = std::span(tokens_).subspan(num_prompt_);
  std::size_t common = CommonLength(taken_, output);
  if (common == output.size()) common += CommonLength(std::span(taken_).subspan(common), path);
  if (common < taken_.size()) {
    const int num_back = static_cast<int>(taken_.size() - common);
    Guarded([&] { constraint_.Rollback(num_back); });
    taken_.resize(common);
  }
  if (common < output.size()) {
    const auto rest = output.subspan(common);
    if (Advance(rest) < std::ssize(rest)) {
      throw HookError("the constraint refuses token " + std::to_string(output[taken_.size()]) +
                      ", which it allowed before");
    }
    common = output.size();
  }
  const auto rest = path.subspan(common - output.size());
  return Advance(rest) == std::ssize(rest);
}

std::span<const std::uint32_t> ConstraintCursor::Allowed() {
  Guarded([&] { constraint_.FillAllowed(allowed_); });
  return allowed_;
}

void ConstraintCursor::AppendForced(std::vector<TokenId>& tokens) {
  const std::size_t num_before = tokens.size();
  Guarded([&] { constraint_.AppendForced(tokens); });
  // A hint: what is no token is no hint.
  const auto is_no_token = [&](TokenId token) { return token < 0 || token >= vocab_size_; };
  tokens.erase(std::find_if(tokens.begin() + num_before, tokens.end(), is_no_token), tokens.end());
}

}  // namespace forerun
