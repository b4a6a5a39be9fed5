#include "cpp/index/predicted_output.h"

#include <algorithm>

namespace forerun {
namespace {

// Fewer agreeing tokens may be chance, such as a bracket: they do not move the anchor.
constexpr int kTrustedMatch = 4;

// Of a frequent token, such as a line break, only this many positions on each side of the anchor
// are compared.
constexpr std::ptrdiff_t kMaxPositions = 64;

}  // namespace

void PredictedOutput::Follow(std::span<const TokenId> output, int num_new) {
  const std::span text = prediction_->tokens();
  for (std::size_t i = output.size() - num_new; i < output.size(); ++i) {
    if (match_len_ > 0 && next_ < text.size() && text[next_] == output[i]) {
      ++next_;
      match_len_ = std::min(match_len_ + 1, kMaxMatch);
    } else {
      if (match_len_ >= kTrustedMatch) anchor_ = next_;
      Realign(output.first(i + 1));
    }
  }
}

void PredictedOutput::Realign(std::span<const TokenId> output) {
  const auto token_at = [&](std::int32_t position) { return prediction_->tokens()[position]; };
  const auto found =
      std::ranges::equal_range(prediction_->positions(), output.back(), {}, token_at);
  const auto middle = std::ranges::lower_bound(found, static_cast<std::int32_t>(anchor_));
  match_len_ = 0;
  const auto consider = [&](std::int32_t position) {
    const int length = MatchLength(output, position);
    if (length <= match_len_) return;
    match_len_ = length;
    next_ = position + 1;
  };
  const auto end = middle + std::min(kMaxPositions, found.end() - middle);
  const auto begin = middle - std::min(kMaxPositions, middle - found.begin());
  for (auto position = middle; position != end; ++position) consider(*position);
  for (auto position = middle; position != begin;) consider(*--position);
}

int PredictedOutput::MatchLength(std::span<const TokenId> output, std::int32_t position) const {
  const std::span text = prediction_->tokens();
  const int most = static_cast<int>(
      std::min<std::size_t>({kMaxMatch, output.size(), position + std::size_t{1}}));
  int length = 0;
  while (length < most && output[output.size() - 1 - length] == text[position - length]) ++length;
  return length;
}

}  // namespace forerun
