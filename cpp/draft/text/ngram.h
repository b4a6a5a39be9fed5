// Drafts what followed an earlier occurrence of the last tokens: prompt lookup, or n-gram.
//
// Of the suffixes of the request's prompt and output that have prompt_lookup_min to
// prompt_lookup_max tokens and occurred earlier, the longest is taken, and its earliest occurrence
// continued: as in vLLM, since it has the longest continuation. The draft ends at the end of the
// text. Amortised O(1) per token; nothing is searched.
#ifndef FORERUN_CPP_DRAFT_TEXT_NGRAM_H_
#define FORERUN_CPP_DRAFT_TEXT_NGRAM_H_

#include <span>

#include "cpp/draft/drafter.h"
#include "cpp/draft/live_requests.h"
#include "cpp/draft/text/own_index.h"
#include "cpp/draft_tree/draft_tree.h"
#include "forerun/options.h"
#include "forerun/types.h"

namespace forerun {

class NgramDrafter : public TextDrafter {
 public:
  // REQUIRES: 1 <= prompt_lookup_min <= prompt_lookup_max.
  explicit NgramDrafter(const NgramOptions& options);

  void Begin(const NewRequest& request) override;
  void Observe(RequestId id, std::span<const TokenId> committed) override;
  void End(RequestId id) override;
  void Forget(RequestId id) override;
  void Propose(const DraftRequest& wanted, DraftTree& draft) override;
  void Reset() override {}
  bool Restore(std::span<const PastOutput> /*outputs*/, bool /*is_last*/) override { return false; }

 private:
  // Fixed at construction.
  int lookup_min_;
  int lookup_max_;

  LiveRequests<OwnIndex> requests_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TEXT_NGRAM_H_
