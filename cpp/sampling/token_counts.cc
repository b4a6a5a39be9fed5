#include "cpp/sampling/token_counts.h"

#include <bit>

namespace forerun {

TokenCounts::TokenCounts(int max_tokens) {
  entries_.reserve(max_tokens);
  slots_.assign(std::bit_ceil(2 * static_cast<std::size_t>(max_tokens) + 1), kEmpty);
}

std::size_t TokenCounts::SlotOf(TokenId token) const {
  const std::size_t mask = slots_.size() - 1;
  const std::uint32_t hash = static_cast<std::uint32_t>(token) * 0x9E3779B1u;
  std::size_t slot = (hash ^ hash >> 16) & mask;  // its low bits depend on the token's alone
  while (slots_[slot] != kEmpty && entries_[slots_[slot]].token != token) slot = (slot + 1) & mask;
  return slot;
}

TokenCounts::Entry& TokenCounts::EntryOf(TokenId token) {
  std::int32_t& index = slots_[SlotOf(token)];
  if (index == kEmpty) {
    index = static_cast<std::int32_t>(entries_.size());
    entries_.push_back({token, 0});
  }
  return entries_[index];
}

}  // namespace forerun
