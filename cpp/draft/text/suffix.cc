#include "cpp/draft/text/suffix.h"

#include <algorithm>
#include <utility>

#include "cpp/draft/text/confidence.h"
#include "cpp/util/check.h"

namespace forerun {

namespace {

// Sums of probabilities are compared with a bound that was added up in another order.
constexpr double kRounding = 1e-9;

// A factor of 0.1 must allow 3 tokens for a match of 30.
constexpr double kFactorRounding = 1e-6;

}  // namespace

SuffixDrafter::SuffixDrafter(const SuffixOptions& options, std::optional<int> max_draft_tokens,
                             std::int64_t max_history_bytes)
    : max_depth_(options.max_tree_depth),
      max_draft_tokens_(max_draft_tokens.value_or(max_depth_)),
      min_token_prob_(options.min_token_prob),
      use_tree_(options.use_tree),
      restorer_(options.max_cached_requests, max_history_bytes, max_depth_),
      histories_(options.max_cached_requests, max_history_bytes, max_depth_) {
  FORERUN_CHECK(max_depth_ >= 2 && options.max_spec_factor > 0, "unchecked options");
  for (int match = 0; match < max_depth_; ++match) {
    const double by_factor = options.max_spec_factor * match + kFactorRounding;
    const double allowed = std::min(by_factor, static_cast<double>(max_depth_ - match));
    allowed_tokens_.push_back(static_cast<int>(allowed));
    const int most_so_far = match == 0 ? 0 : most_tokens_.back();
    most_tokens_.push_back(std::max(most_so_far, allowed_tokens_.back()));
  }
}

void SuffixDrafter::Begin(const NewRequest& request) {
  restorer_.TakeInto(histories_);
  Request begun = {
      OwnIndex(max_depth_ - 1), request.prompt.size(), histories_.Join(request.tenant), {}};
  begun.own.Append(request.prompt);
  requests_.Add(request.id, std::move(begun));
}

void SuffixDrafter::Observe(RequestId id, std::span<const TokenId> committed) {
  restorer_.TakeInto(histories_);
  requests_.Get(id).own.Append(committed);
}

void SuffixDrafter::End(RequestId id) {
  const Request& request = requests_.Get(id);
  histories_.Add(*request.tenant, request.own.index().text().subspan(request.num_prompt_tokens));
  requests_.Remove(id);
}

void SuffixDrafter::Forget(RequestId id) { requests_.Remove(id); }

bool SuffixDrafter::Restore(std::span<const PastOutput> outputs, bool is_last) {
  const bool has_room =
      std::ranges::all_of(outputs, [&](const PastOutput& output) { return restorer_.Add(output); });
  if (is_last || !has_room) restorer_.Finish();
  return has_room;
}

void SuffixDrafter::Propose(const DraftRequest& wanted, DraftTree& draft) {
  Request& request = requests_.Get(wanted.id);
  request.tenant->history.Follow(request.own.index().text(), request.follower);
  const int limit = std::min(wanted.max_tokens, max_draft_tokens_);
  use_tree_ ? ProposeTree(request, limit, draft) : ProposeChain(request, limit, draft);
}

void SuffixDrafter::ProposeChain(const Request& request, int max_tokens, DraftTree& draft) const {
  Candidate best;
  Consider(request.own.index(), request.own.match(), max_tokens, best);
  const History& history = request.tenant->history;
  for (int i = history.num_segments() - 1; i >= 0; --i) {
    Consider(history.segment(i), history.match(i, request.follower), max_tokens, best);
  }
  Write(best, draft);
}

void SuffixDrafter::ProposeAfter(const DraftRequest& wanted, std::span<const TokenId> path,
                                 DraftTree& draft) {
  const OwnIndex& own = requests_.Get(wanted.id).own;
  SuffixIndex::Cursor match = own.match();
  for (TokenId token : path) own.index().Advance(match, token, max_depth_ - 1);
  own.index().Resolve(match);
  Candidate best;
  Consider(own.index(), match, wanted.max_tokens, best);
  Write(best, draft);
}

void SuffixDrafter::ProposeTree(const Request& request, int max_nodes, DraftTree& draft) {
  tree_builder_.Clear();
  int longest = 0;
  const auto add = [&](const SuffixIndex& index, SuffixIndex::Cursor match) {
    longest = std::max(longest, match.length);
    tree_builder_.AddSource(index, match);
  };
  add(request.own.index(), request.own.match());
  const History& history = request.tenant->history;
  for (int i = history.num_segments() - 1; i >= 0; --i) {
    add(history.segment(i), history.match(i, request.follower));
  }
  tree_builder_.Grow({max_nodes, most_tokens_[longest], max_depth_ - 1, min_token_prob_}, draft);
}

// The sum of the path's probabilities; less than to_beat, and unfinished, when it cannot reach it.
double SuffixDrafter::Score(const Candidate& candidate, double to_beat) const {
  const SuffixIndex& index = *candidate.index;
  SuffixIndex::StateId state = candidate.match.state;
  double prob = 1;
  double score = 0;
  for (int i = 0; i < candidate.num_tokens; ++i) {
    const SuffixIndex::StateId next = index.best_next(state);
    if (next == SuffixIndex::kNone) break;
    prob *= static_cast<double>(index.count(next)) / index.num_followed(state);
    if (prob < min_token_prob_) break;
    if (score + prob * (candidate.num_tokens - i) < to_beat - kRounding) break;
    score += prob;
    state = next;
  }
  return score;
}

void SuffixDrafter::Consider(const SuffixIndex& index, SuffixIndex::Cursor match, int max_tokens,
                             Candidate& best) const {
  // No probability is above 1, so a score is at most the number of tokens.
  const auto hopeless = [&](int num_tokens) {
    return std::min(num_tokens, max_tokens) < best.score - kRounding;
  };
  while (match.length > 0 && !hopeless(most_tokens_[match.length])) {
    // Suffixes of one state have the same continuations: only the longest is considered.
    const SuffixIndex::StateId shorter = index.link(match.state);
    const auto allowed = allowed_tokens_.begin();
    const int num_tokens =
        *std::max_element(allowed + index.length(shorter) + 1, allowed + match.length + 1);
    if (!hopeless(num_tokens)) {
      Candidate candidate{&index, match, std::min(num_tokens, max_tokens)};
      candidate.score = Score(candidate, best.score);
      if (candidate.score > best.score) best = candidate;
    }
    match = {shorter, index.length(shorter)};
  }
}

void SuffixDrafter::Write(const Candidate& best, DraftTree& draft) const {
  if (best.index == nullptr) return;
  const SuffixIndex& index = *best.index;
  SuffixIndex::Cursor context = best.match;
  double prob = 1;
  while (draft.size() < best.num_tokens) {
    const SuffixIndex::StateId next = index.best_next(context.state);
    if (next == SuffixIndex::kNone) break;
    const int count = index.count(next);
    const int num_followed = index.num_followed(context.state);
    prob *= static_cast<double>(count) / num_followed;
    if (prob < min_token_prob_) break;
    draft.AppendToChain(index.last_token(next),
                        CountConfidence(count, num_followed, context.length));
    context = {next, context.length + 1};
  }
}

}  // namespace forerun
