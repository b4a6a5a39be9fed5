// How often each token occurs in one request. Sized once; adding a token allocates nothing.
#ifndef FORERUN_CPP_SAMPLING_TOKEN_COUNTS_H_
#define FORERUN_CPP_SAMPLING_TOKEN_COUNTS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "forerun/types.h"

namespace forerun {

class TokenCounts {
 public:
  struct Entry {
    TokenId token;
    int num_in_output;  // 0: the prompt alone has it
  };

  // For a text of up to `max_tokens` tokens.
  explicit TokenCounts(int max_tokens = 0);

  void AddFromPrompt(TokenId token) { EntryOf(token); }
  void AddFromOutput(TokenId token) { ++EntryOf(token).num_in_output; }

  bool Contains(TokenId token) const { return IndexOf(token) >= 0; }
  // In entries(); -1: it does not occur.
  int IndexOf(TokenId token) const { return slots_[SlotOf(token)]; }
  // Every token that occurs, once, in the order of first occurrence.
  std::span<const Entry> entries() const { return entries_; }

 private:
  static constexpr std::int32_t kEmpty = -1;

  Entry& EntryOf(TokenId token);
  // Where the token's entry is, or would be.
  std::size_t SlotOf(TokenId token) const;

  std::vector<Entry> entries_;
  std::vector<std::int32_t> slots_;  // into entries_; a power of two, at most half of it in use
};

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_TOKEN_COUNTS_H_
