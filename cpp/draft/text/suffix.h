// Drafts the most frequent continuation of the last tokens, in the request's own prompt and output
// and in past outputs of its tenant: suffix decoding (Oliaro et al., "SuffixDecoding"), with vLLM's
// options.
//
// Every suffix of the text that occurred earlier and has at most max_tree_depth - 1 tokens has a
// candidate: the most frequent next token (of equals, the lowest id), and so on. The probability of
// a path is the product of its tokens' shares of occurrences. A path ends before its probability
// falls below min_token_prob, before match and draft together exceed max_tree_depth, and after
// floor(max_spec_factor * match length) tokens. The draft is the candidate with the greatest sum of
// path probabilities, which is the expected number of accepted tokens; of equals the one from the
// request itself, then from the newest outputs, then with the longest match.
//
// The occurrence at the end of the text, which nothing follows yet, does not count.
#ifndef FORERUN_CPP_DRAFT_TEXT_SUFFIX_H_
#define FORERUN_CPP_DRAFT_TEXT_SUFFIX_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cpp/draft/drafter.h"
#include "cpp/draft/live_requests.h"
#include "cpp/draft/text/own_index.h"
#include "cpp/draft/text/suffix_tree_builder.h"
#include "cpp/draft_tree/draft_tree.h"
#include "cpp/index/history.h"
#include "cpp/index/segment_restorer.h"
#include "cpp/index/tenant_histories.h"
#include "forerun/options.h"
#include "forerun/types.h"

namespace forerun {

class SuffixDrafter : public TextDrafter {
 public:
  static constexpr std::int64_t kMaxHistoryBytes = std::int64_t{512} << 20;

  // REQUIRES: max_tree_depth >= 2, max_spec_factor > 0.
  // Drafts at most `max_draft_tokens`, even if a request allows more; absent: max_tree_depth.
  explicit SuffixDrafter(const SuffixOptions& options, std::optional<int> max_draft_tokens = {},
                         std::int64_t max_history_bytes = kMaxHistoryBytes);

  void Begin(const NewRequest& request) override;
  void Observe(RequestId id, std::span<const TokenId> committed) override;
  // Adds the request's output, without its prompt, to the history of its tenant.
  void End(RequestId id) override;
  void Forget(RequestId id) override;
  void Propose(const DraftRequest& wanted, DraftTree& draft) override;
  // The best chain after the request's tokens and then `path`, from the request's own text alone.
  void ProposeAfter(const DraftRequest& wanted, std::span<const TokenId> path, DraftTree& draft);
  void Reset() override { histories_.Clear(); }
  bool Restore(std::span<const PastOutput> outputs, bool is_last) override;

  const TenantHistories& histories() const { return histories_; }

 private:
  struct Request {
    OwnIndex own;
    std::size_t num_prompt_tokens = 0;
    TenantHistories::Member tenant;
    History::Follower follower;
  };

  struct Candidate {
    const SuffixIndex* index = nullptr;
    SuffixIndex::Cursor match;
    int num_tokens = 0;  // at most
    double score = 0;
  };

  void ProposeChain(const Request& request, int max_tokens, DraftTree& draft) const;
  void ProposeTree(const Request& request, int max_nodes, DraftTree& draft);
  double Score(const Candidate& candidate, double to_beat) const;
  void Consider(const SuffixIndex& index, SuffixIndex::Cursor match, int max_tokens,
                Candidate& best) const;
  void Write(const Candidate& best, DraftTree& draft) const;

  // Fixed at construction.
  int max_depth_;
  int max_draft_tokens_;
  double min_token_prob_;
  bool use_tree_;
  std::vector<int> allowed_tokens_;  // [match length]: by the factor and the depth
  std::vector<int> most_tokens_;     // [match length]: allowed for it or any shorter one

  SegmentRestorer restorer_;
  TenantHistories histories_;       // unchanged between Begin, Observe, End and Reset
  LiveRequests<Request> requests_;  // members of the histories
  SuffixTreeBuilder tree_builder_;  // of the last ProposeTree
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TEXT_SUFFIX_H_
