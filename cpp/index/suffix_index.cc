#include "cpp/index/suffix_index.h"

#include <algorithm>
#include <limits>

#include "cpp/util/check.h"
#include "cpp/util/hash.h"

namespace forerun {

namespace {

constexpr std::size_t kMinBuckets = 16;

// Edges outnumber tokens at most three to one, and their numbers must fit 32 bits.
constexpr std::size_t kMaxTokens = std::numeric_limits<std::int32_t>::max() / 3;

}  // namespace

SuffixIndex::SuffixIndex(int max_depth) : max_depth_(max_depth), states_(1) {
  FORERUN_CHECK(max_depth >= 1, "max_depth = " + std::to_string(max_depth));
}

void SuffixIndex::StartSequence() {
  if (last_ == kRoot) return;
  text_.push_back(kSequenceBreak);
  last_ = kRoot;
  tail_ = Cursor{};
}

void SuffixIndex::Append(TokenId token) {
  FORERUN_CHECK(token >= 0, "token = " + std::to_string(token));
  FORERUN_CHECK(text_.size() < kMaxTokens, "the text is too long to index");
  text_.push_back(token);
  last_ = Extend(token);
  CountSuffixes();
}

void SuffixIndex::Advance(Cursor& cursor, TokenId token, int max_length) const {
  Resolve(cursor);
  StateId next = Next(cursor.state, token);
  while (next == kNone && cursor.state != kRoot) {
    cursor.state = link(cursor.state);
    cursor.length = length(cursor.state);
    next = Next(cursor.state, token);
  }
  if (next == kNone) return;
  cursor = {next, cursor.length + 1};
  Resolve(cursor, max_length);
}

void SuffixIndex::Resolve(Cursor& cursor, int max_length) const {
  cursor.length = std::min(cursor.length, std::max(max_length, 0));
  while (cursor.state != kRoot && length(link(cursor.state)) >= cursor.length) {
    cursor.state = link(cursor.state);
  }
}

SuffixIndex::StateId SuffixIndex::Next(StateId state, TokenId token) const {
  const State& from = states_[state];
  if (from.first_target == kNone) return kNone;
  if (from.first_token == token) return from.first_target;
  if (from.more_edges == kNone) return kNone;
  const std::int32_t edge = buckets_[BucketOf(state, token)];
  return edge == kNone ? kNone : edges_[edge].target;
}

std::int64_t SuffixIndex::num_bytes() const {
  return static_cast<std::int64_t>(
      sizeof(*this) + text_.capacity() * sizeof(TokenId) + states_.capacity() * sizeof(State) +
      edges_.capacity() * sizeof(Edge) + buckets_.capacity() * sizeof(std::int32_t));
}

// The state of the current sequence after `token`, which ends the text.
SuffixIndex::StateId SuffixIndex::Extend(TokenId token) {
  const std::int32_t new_length = length(last_) + 1;
  if (const StateId known = Next(last_, token); known != kNone) {
    // An earlier sequence began like this one.
    return length(known) == new_length ? known : Clone(last_, token, known);
  }
  const StateId created = num_states();
  states_.push_back({.length = new_length,
                     .link = kRoot,
                     .first_end = static_cast<std::int32_t>(text_.size()) - 1});
  StateId suffix = last_;
  StateId next = kNone;
  while (suffix != kNone && (next = Next(suffix, token)) == kNone) {
    AddEdge(suffix, token, created);
    suffix = link(suffix);
  }
  if (suffix != kNone) {
    const bool whole = length(next) == length(suffix) + 1;
    const StateId longest_known = whole ? next : Clone(suffix, token, next);
    states_[created].link = longest_known;
  }
  return created;
}

// Splits the strings of `original` that are at most length(source) + 1 long off into a state of
// their own. REQUIRES: Next(source, token) == original.
SuffixIndex::StateId SuffixIndex::Clone(StateId source, TokenId token, StateId original) {
  const StateId clone = num_states();
  State copy = states_[original];
  const std::int32_t original_edges = copy.more_edges;
  copy.length = length(source) + 1;
  copy.more_edges = kNone;
  states_.push_back(copy);
  for (std::int32_t i = original_edges; i != kNone; i = edges_[i].next_edge) {
    AddEdge(clone, edges_[i].token, edges_[i].target);
  }
  states_[original].link = clone;
  for (StateId suffix = source; suffix != kNone; suffix = link(suffix)) {
    StateId* target = FindTarget(suffix, token);
    if (*target != original) break;
    *target = clone;
    if (states_[suffix].best_next == original) states_[suffix].best_next = clone;
  }
  return clone;
}

// Counts the suffixes that the last token made, and it as the continuation of the suffixes before.
void SuffixIndex::CountSuffixes() {
  Resolve(tail_);  // Extend may have split its state
  const TokenId token = text_.back();
  const StateId longest = Next(tail_.state, token);
  StateId counted = kNone;
  StateId next = longest;
  for (StateId context = tail_.state; context != kNone; context = link(context)) {
    State& state = states_[context];
    // Where `token` leads from `context` is found over links, without a look into the table.
    while (length(link(next)) > state.length) next = link(next);
    if (next != counted) ++states_[next].count;
    counted = next;
    ++state.num_followed;
    const StateId best = state.best_next;
    if (best == next) continue;
    if (best == kNone || count(next) > count(best) ||
        (count(next) == count(best) && token < last_token(best))) {
      state.best_next = next;
    }
  }
  tail_ = {longest, tail_.length + 1};
  Resolve(tail_, max_depth_ - 1);
}

SuffixIndex::StateId* SuffixIndex::FindTarget(StateId source, TokenId token) {
  State& from = states_[source];
  if (from.first_token == token) return &from.first_target;
  return &edges_[buckets_[BucketOf(source, token)]].target;
}

void SuffixIndex::AddEdge(StateId source, TokenId token, StateId target) {
  State& from = states_[source];
  if (from.first_target == kNone) {
    from.first_token = token;
    from.first_target = target;
    return;
  }
  if (4 * (edges_.size() + 1) > 3 * buckets_.size()) GrowBuckets();
  const std::int32_t edge = static_cast<std::int32_t>(edges_.size());
  buckets_[BucketOf(source, token)] = edge;
  edges_.push_back({source, token, target, from.more_edges});
  from.more_edges = edge;
}

void SuffixIndex::GrowBuckets() {
  buckets_.assign(std::max(kMinBuckets, 2 * buckets_.size()), kNone);
  for (std::size_t i = 0; i < edges_.size(); ++i) {
    buckets_[BucketOf(edges_[i].source, edges_[i].token)] = static_cast<std::int32_t>(i);
  }
}

// The bucket that holds the edge, or the empty one where it belongs. REQUIRES: a bucket is empty.
std::size_t SuffixIndex::BucketOf(StateId source, TokenId token) const {
  const std::size_t mask = buckets_.size() - 1;
  const std::uint64_t key =
      static_cast<std::uint64_t>(source) << 32 | static_cast<std::uint32_t>(token);
  std::size_t bucket = MixBits(key) & mask;
  while (buckets_[bucket] != kNone) {
    const Edge& edge = edges_[buckets_[bucket]];
    if (edge.source == source && edge.token == token) break;
    bucket = (bucket + 1) & mask;
  }
  return bucket;
}

}  // namespace forerun
