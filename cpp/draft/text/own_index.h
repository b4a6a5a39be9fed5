// An index of a request's own prompt and output, with the longest suffix that occurred earlier.
#ifndef FORERUN_CPP_DRAFT_TEXT_OWN_INDEX_H_
#define FORERUN_CPP_DRAFT_TEXT_OWN_INDEX_H_

#include <span>

#include "cpp/index/suffix_index.h"
#include "forerun/types.h"

namespace forerun {

class OwnIndex {
 public:
  // Matches are at most max_match tokens long; strings one token longer are counted.
  explicit OwnIndex(int max_match) : max_match_(max_match), index_(max_match + 1) {}

  void Append(std::span<const TokenId> tokens) {
    for (const TokenId token : tokens) {
      // In this order: an occurrence that the token itself completes is not an earlier one.
      index_.Advance(match_, token, max_match_);
      index_.Append(token);
    }
  }

  // That suffix, among the suffixes that a token followed earlier. Resolved; empty when there is
  // none.
  SuffixIndex::Cursor match() const {
    SuffixIndex::Cursor match = match_;
    index_.Resolve(match);
    return match;
  }

  const SuffixIndex& index() const { return index_; }

 private:
  int max_match_;
  SuffixIndex index_;
  SuffixIndex::Cursor match_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TEXT_OWN_INDEX_H_
