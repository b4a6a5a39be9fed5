// The invariants of a suffix automaton, recomputed from the text alone.
#include <algorithm>
#include <string>

#include "cpp/index/suffix_index.h"
#include "cpp/util/check.h"

namespace forerun {

namespace {

std::string At(SuffixIndex::StateId state) { return "state " + std::to_string(state); }

// The last `length` tokens of the text's first `end` + 1.
std::span<const TokenId> Ending(std::span<const TokenId> text, int end, int length) {
  return text.subspan(end + 1 - length, length);
}

bool IsSuffix(std::span<const TokenId> suffix, std::span<const TokenId> of) {
  return suffix.size() <= of.size() &&
         std::equal(suffix.begin(), suffix.end(), of.end() - static_cast<int>(suffix.size()));
}

}  // namespace

void SuffixIndex::CheckIntegrity() const {
  FORERUN_CHECK(!states_.empty() && length(kRoot) == 0 && link(kRoot) == kNone,
                "the root is not the empty string");
  CheckLinks();
  CheckEdges();
  CheckOccurrences();
  CheckContinuations();
}

void SuffixIndex::CheckLinks() const {
  for (StateId s = 1; s < num_states(); ++s) {
    const State& state = states_[s];
    FORERUN_CHECK(state.length >= 1 && state.first_end < static_cast<int>(text_.size()) &&
                      state.first_end >= state.length - 1,
                  At(s) + ": its string is not inside the text");
    const auto longest = Ending(text_, state.first_end, state.length);
    FORERUN_CHECK(std::find(longest.begin(), longest.end(), kSequenceBreak) == longest.end(),
                  At(s) + ": its string spans two sequences");
    FORERUN_CHECK(state.link >= 0 && state.link < num_states(), At(s) + ": bad link");
    const State& suffix = states_[state.link];
    FORERUN_CHECK(suffix.length < state.length, At(s) + ": link is not shorter");
    FORERUN_CHECK(
        suffix.length == 0 || IsSuffix(Ending(text_, suffix.first_end, suffix.length), longest),
        At(s) + ": link is not a suffix");
  }
}

void SuffixIndex::CheckEdges() const {
  std::size_t num_more_edges = 0;
  for (StateId s = 0; s < num_states(); ++s) {
    std::size_t degree = 0;
    ForEachNext(s, [&](TokenId token, StateId target) {
      const std::string edge = At(s) + ", token " + std::to_string(token);
      FORERUN_CHECK(++degree <= edges_.size() + 1, edge + ": the edge list has a cycle");
      FORERUN_CHECK(target > 0 && target < num_states(), edge + ": bad target");
      FORERUN_CHECK(Next(s, token) == target, edge + ": the table disagrees with the edge list");
      FORERUN_CHECK(last_token(target) == token, edge + ": target ends in another token");
      FORERUN_CHECK(length(target) > length(s) && length(link(target)) <= length(s),
                    edge + ": target has no string of the right length");
      const auto longest = Ending(text_, first_end(target), length(target));
      FORERUN_CHECK(s == kRoot || IsSuffix(Ending(text_, first_end(s), length(s)),
                                           longest.first(longest.size() - 1)),
                    edge + ": target does not continue the state");
    });
    num_more_edges += degree > 0 ? degree - 1 : 0;
  }
  FORERUN_CHECK(num_more_edges == edges_.size(), "an edge is in no list");
  const auto num_free = std::count(buckets_.begin(), buckets_.end(), kNone);
  FORERUN_CHECK(buckets_.size() - num_free == edges_.size(), "the table does not hold every edge");
}

void SuffixIndex::CheckOccurrences() const {
  std::vector<State> expected(states_.size());
  StateId whole = kRoot;
  int whole_length = 0;
  for (int end = 0; end < static_cast<int>(text_.size()); ++end) {
    if (text_[end] == kSequenceBreak) {
      whole = kRoot;
      whole_length = 0;
      continue;
    }
    const bool followed =
        end + 1 < static_cast<int>(text_.size()) && text_[end + 1] != kSequenceBreak;
    if (whole == kRoot) ++expected[kRoot].num_followed;
    expected[kRoot].num_followed += followed;
    whole = Next(whole, text_[end]);
    FORERUN_CHECK(whole != kNone, "position " + std::to_string(end) + ": a sequence is missing");
    FORERUN_CHECK(length(whole) >= ++whole_length,
                  At(whole) + ": shorter than the string it represents");
    for (StateId s = whole; s != kRoot; s = link(s)) {
      if (expected[s].first_end < 0) expected[s].first_end = end;
      ++expected[s].count;
      expected[s].num_followed += followed;
    }
  }
  FORERUN_CHECK(last_ == whole, "the state of the current sequence is not its own");
  for (StateId s = 0; s < num_states(); ++s) {
    const int shortest = s == kRoot ? 0 : length(link(s)) + 1;
    FORERUN_CHECK(first_end(s) == expected[s].first_end, At(s) + ": wrong first_end");
    FORERUN_CHECK(shortest > max_depth_ || count(s) == expected[s].count, At(s) + ": wrong count");
    FORERUN_CHECK(shortest >= max_depth_ || num_followed(s) == expected[s].num_followed,
                  At(s) + ": wrong num_followed");
  }
  Cursor whole_tail{whole, whole_length};
  Resolve(whole_tail, max_depth_ - 1);
  Cursor tail = tail_;
  Resolve(tail);
  FORERUN_CHECK(tail.state == whole_tail.state && tail.length == whole_tail.length,
                "the tail is not the end of the current sequence");
}

void SuffixIndex::CheckContinuations() const {
  for (StateId s = 0; s < num_states(); ++s) {
    std::int64_t total = 0;
    StateId best = kNone;
    bool has_best = best_next(s) == kNone;
    ForEachNext(s, [&](TokenId token, StateId target) {
      total += count(target);
      has_best |= target == best_next(s);
      if (best == kNone || count(target) > count(best) ||
          (count(target) == count(best) && token < last_token(best))) {
        best = target;
      }
    });
    FORERUN_CHECK(has_best, At(s) + ": no edge leads to best_next");
    if (s != kRoot && length(link(s)) + 1 >= max_depth_) continue;
    FORERUN_CHECK(total == num_followed(s), At(s) + ": continuations do not add up");
    FORERUN_CHECK(best == best_next(s), At(s) + ": wrong best_next");
  }
}

}  // namespace forerun
