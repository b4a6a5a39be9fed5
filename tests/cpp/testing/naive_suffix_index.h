// The brute-force twin of SuffixIndex: every answer by scanning the sequences.
#ifndef FORERUN_TESTS_CPP_TESTING_NAIVE_SUFFIX_INDEX_H_
#define FORERUN_TESTS_CPP_TESTING_NAIVE_SUFFIX_INDEX_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "forerun/types.h"

namespace forerun::testing {

using Tokens = std::vector<TokenId>;

class NaiveSuffixIndex {
 public:
  void StartSequence() {
    if (!text_.empty() && text_.back() != kBreak) text_.push_back(kBreak);
  }
  void Append(TokenId token) { text_.push_back(token); }

  // Positions of the last tokens of every occurrence, in order. REQUIRES: string is not empty.
  std::vector<int> Ends(std::span<const TokenId> string) const {
    std::vector<int> ends;
    for (auto from = text_.begin();;) {
      from = std::search(from, text_.end(), string.begin(), string.end());
      if (from == text_.end()) return ends;
      ends.push_back(static_cast<int>(from - text_.begin() + string.size()) - 1);
      ++from;
    }
  }

  // Every token that follows an occurrence, and how often.
  std::map<TokenId, int> Continuations(std::span<const TokenId> string) const {
    std::map<TokenId, int> continuations;
    const auto add = [&](std::size_t position) {
      if (position < text_.size() && text_[position] != kBreak) ++continuations[text_[position]];
    };
    if (string.empty()) {
      for (std::size_t i = 0; i < text_.size(); ++i) add(i);
    } else {
      for (const int end : Ends(string)) add(end + 1);
    }
    return continuations;
  }

  // Length of the longest suffix of `read`, of at most max_length tokens, that occurs.
  int LongestMatch(std::span<const TokenId> read, int max_length) const {
    int length = std::min(static_cast<int>(read.size()), max_length);
    while (length > 0 && Ends(read.last(length)).empty()) --length;
    return length;
  }

  // Every distinct substring that is not empty.
  std::set<Tokens> Substrings() const {
    std::set<Tokens> substrings;
    for (std::size_t begin = 0; begin < text_.size(); ++begin) {
      for (std::size_t end = begin; end < text_.size() && text_[end] != kBreak; ++end) {
        substrings.emplace(text_.begin() + begin, text_.begin() + end + 1);
      }
    }
    return substrings;
  }

  const Tokens& text() const { return text_; }

 private:
  static constexpr TokenId kBreak = -1;

  Tokens text_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_NAIVE_SUFFIX_INDEX_H_
