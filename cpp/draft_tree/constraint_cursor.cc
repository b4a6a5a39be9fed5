#include "cpp/draft_tree/constraint_cursor.h"

#include <algorithm>
#include <exception>

#include "cpp/util/check.h"
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
      vocab_size_(vocab_size) {
  accepted_.reserve(max_tokens - num_prompt_);
}

template <typename Call>
void ConstraintCursor::Guarded(const Call& call) {
  if (!failure_.empty()) throw HookError(failure_);
  is_interrupted_ = true;
  try {
    call();
  } catch (const std::exception& error) {
    failure_ = kConstraintFailed + std::string(error.what());
    throw HookError(failure_);
  }
  is_interrupted_ = false;
}

// After a call that was interrupted the constraint's state is unknown.
void ConstraintCursor::Recover() {
  if (!is_interrupted_) return;
  Guarded([&] { constraint_.Restart(); });
  accepted_.clear();
}

int ConstraintCursor::Advance(std::span<const TokenId> tokens) {
  int num_accepted = 0;
  if (!tokens.empty()) Guarded([&] { num_accepted = constraint_.Advance(tokens); });
  if (num_accepted < 0 || num_accepted > std::ssize(tokens)) {
    throw HookError("the constraint took " + std::to_string(num_accepted) + " of " +
                    std::to_string(tokens.size()) + " tokens");
  }
  accepted_.insert(accepted_.end(), tokens.begin(), tokens.begin() + num_accepted);
  return num_accepted;
}

bool ConstraintCursor::MoveTo(std::span<const TokenId> path) {
  Recover();
  const auto output = std::span(tokens_).subspan(num_prompt_);
  std::size_t common = CommonLength(accepted_, output);
  if (common == output.size()) common += CommonLength(std::span(accepted_).subspan(common), path);
  if (common < accepted_.size()) {
    const int num_back = static_cast<int>(accepted_.size() - common);
    Guarded([&] { constraint_.Rollback(num_back); });
    accepted_.resize(common);
  }
  if (common < output.size()) {
    const auto rest = output.subspan(common);
    if (Advance(rest) < std::ssize(rest)) {
      throw HookError("the constraint refuses token " + std::to_string(output[accepted_.size()]) +
                      ", which it allowed before");
    }
    common = output.size();
  }
  const auto rest = path.subspan(common - output.size());
  return Advance(rest) == std::ssize(rest);
}

void ConstraintCursor::SetMasks(std::span<const std::uint32_t> words,
                                std::span<const std::string> failures) {
  masks_ = words;
  mask_failures_ = failures;
}

std::span<const std::uint32_t> ConstraintCursor::Allowed(int row) const {
  FORERUN_CHECK(row < std::ssize(mask_failures_), "a mask was not computed");
  if (!mask_failures_[row].empty()) throw HookError(mask_failures_[row]);
  const std::size_t num_words = masks_.size() / mask_failures_.size();
  return masks_.subspan(row * num_words, num_words);
}

void ConstraintCursor::AppendForced(std::vector<TokenId>& tokens) {
  const std::size_t num_before = tokens.size();
  Guarded([&] { constraint_.AppendForced(tokens); });
  // A hint: an id outside the vocabulary ends it.
  const auto is_outside = [&](TokenId token) { return token < 0 || token >= vocab_size_; };
  tokens.erase(std::find_if(tokens.begin() + num_before, tokens.end(), is_outside), tokens.end());
}

}  // namespace forerun
