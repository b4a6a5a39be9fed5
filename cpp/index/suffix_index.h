// An online suffix automaton over token sequences: where and how often every substring occurred.
//
// Append extends the current sequence by one token in amortised O(1) plus at most max_depth link
// steps; nothing is ever rescanned. StartSequence begins another sequence, and no match spans two.
// A state represents all substrings that end at the same positions: those of length
// (length(link(s)), length(s)], each a suffix of the next longer. Counts, and which continuation is
// the most frequent, are exact for the substrings whose continuation is at most max_depth long.
//
// Positions index text(), in which one kSequenceBreak separates sequences.
//
// Cursors stay valid while the index grows. Not thread-safe; const calls may run side by side.
#ifndef FORERUN_CPP_INDEX_SUFFIX_INDEX_H_
#define FORERUN_CPP_INDEX_SUFFIX_INDEX_H_

#include <cstdint>
#include <span>
#include <vector>

#include "forerun/types.h"

namespace forerun {

class SuffixIndex {
 public:
  using StateId = std::int32_t;
  static constexpr StateId kRoot = 0;   // the empty string
  static constexpr StateId kNone = -1;  // no state
  static constexpr TokenId kSequenceBreak = -1;

  // The substring of `length` tokens that ends where `state` does. A value; the default is the
  // empty string.
  struct Cursor {
    StateId state = kRoot;
    std::int32_t length = 0;
  };

  // REQUIRES: max_depth >= 1.
  explicit SuffixIndex(int max_depth);

  SuffixIndex(SuffixIndex&&) = default;
  SuffixIndex& operator=(SuffixIndex&&) = default;
  SuffixIndex(const SuffixIndex&) = delete;
  SuffixIndex& operator=(const SuffixIndex&) = delete;

  // Starts a new sequence: no match crosses its start. Does nothing while the current one is empty.
  void StartSequence();

  // REQUIRES: token >= 0.
  void Append(TokenId token);

  // Moves `cursor` to the longest suffix, of at most max_length tokens, of what it has read and
  // `token` that occurs in the index. Amortised O(1).
  //
  // To follow the index's own text, advance before the token is appended: the cursor then denotes
  // the longest suffix of the text that also occurred earlier, followed by a token.
  void Advance(Cursor& cursor, TokenId token, int max_length) const;

  // Finds the cursor's state again after the index grew, and shortens it to max_length tokens.
  // The accessors by state below need a resolved cursor; Advance does not.
  void Resolve(Cursor& cursor, int max_length) const;
  void Resolve(Cursor& cursor) const { Resolve(cursor, cursor.length); }

  // kNone when no occurrence of the state's strings is followed by `token`.
  StateId Next(StateId state, TokenId token) const;

  // Calls fn(token, target) once for every token that followed the state's strings, or for
  // max_tokens of them, in no particular order; count(target) says how often.
  template <typename Fn>
  void ForEachNext(StateId state, int max_tokens, const Fn& fn) const {
    const State& from = states_[state];
    if (from.first_target == kNone || max_tokens <= 0) return;
    fn(from.first_token, from.first_target);
    for (std::int32_t i = from.more_edges; i != kNone && --max_tokens > 0;
         i = edges_[i].next_edge) {
      fn(edges_[i].token, edges_[i].target);
    }
  }
  template <typename Fn>
  void ForEachNext(StateId state, const Fn& fn) const {
    ForEachNext(state, num_states(), fn);
  }

  std::int32_t length(StateId state) const { return states_[state].length; }
  StateId link(StateId state) const { return states_[state].link; }
  // Position of the last token of the earliest occurrence.
  std::int32_t first_end(StateId state) const { return states_[state].first_end; }
  // Occurrences of the state's strings of at most max_depth tokens.
  std::int32_t count(StateId state) const { return states_[state].count; }
  // Of these, occurrences that a token follows; for strings shorter than max_depth.
  std::int32_t num_followed(StateId state) const { return states_[state].num_followed; }
  // Where the most frequent next token leads (of equals, the lowest token), or kNone.
  StateId best_next(StateId state) const { return states_[state].best_next; }
  // The last token of the state's strings. REQUIRES: state != kRoot.
  TokenId last_token(StateId state) const { return text_[states_[state].first_end]; }

  std::span<const TokenId> text() const { return text_; }
  int max_depth() const { return max_depth_; }
  int num_states() const { return static_cast<int>(states_.size()); }
  std::int64_t num_bytes() const;

  // Recomputes every invariant from the text and throws InternalError that names the first broken
  // one. Takes quadratic time; for tests.
  void CheckIntegrity() const;

 private:
  friend struct SuffixIndexTestPeer;

  // Most states have one edge, which is kept here; the others are in edges_.
  struct State {
    std::int32_t length = 0;
    StateId link = kNone;
    std::int32_t first_end = -1;
    std::int32_t count = 0;
    std::int32_t num_followed = 0;
    StateId best_next = kNone;
    TokenId first_token = 0;
    StateId first_target = kNone;
    std::int32_t more_edges = kNone;  // head of a list in edges_
  };

  struct Edge {
    StateId source;
    TokenId token;
    StateId target;
    std::int32_t next_edge;
  };

  StateId Extend(TokenId token);
  StateId Clone(StateId source, TokenId token, StateId original);
  void CountSuffixes();

  StateId* FindTarget(StateId source, TokenId token);
  void AddEdge(StateId source, TokenId token, StateId target);
  void GrowBuckets();
  std::size_t BucketOf(StateId source, TokenId token) const;

  void CheckLinks() const;
  void CheckEdges() const;
  void CheckOccurrences() const;
  void CheckContinuations() const;

  int max_depth_;  // Fixed at construction.

  // Change only in Append and StartSequence.
  std::vector<TokenId> text_;
  std::vector<State> states_;
  std::vector<Edge> edges_;
  std::vector<std::int32_t> buckets_;  // open addressing, a power of two: (source, token) -> edge
  StateId last_ = kRoot;               // the current sequence, whole
  Cursor tail_;                        // its last max_depth - 1 tokens
};

}  // namespace forerun

#endif  // FORERUN_CPP_INDEX_SUFFIX_INDEX_H_
