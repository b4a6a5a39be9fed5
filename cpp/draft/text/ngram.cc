#include "cpp/draft/text/ngram.h"

#include <algorithm>

#include "cpp/draft/text/confidence.h"
#include "cpp/util/check.h"

namespace forerun {

NgramDrafter::NgramDrafter(const NgramOptions& options)
    : lookup_min_(options.prompt_lookup_min), lookup_max_(options.prompt_lookup_max) {
  FORERUN_CHECK(1 <= lookup_min_ && lookup_min_ <= lookup_max_, "unchecked options");
}

void NgramDrafter::Begin(const NewRequest& request) {
  requests_.Add(request.id, OwnIndex(lookup_max_)).Append(request.prompt);
}

void NgramDrafter::Observe(RequestId id, std::span<const TokenId> committed) {
  requests_.Get(id).Append(committed);
}

void NgramDrafter::End(RequestId id) { requests_.Remove(id); }

void NgramDrafter::Forget(RequestId id) { requests_.Remove(id); }

void NgramDrafter::Propose(const DraftRequest& wanted, DraftTree& draft) {
  const OwnIndex& request = requests_.Get(wanted.id);
  const SuffixIndex& index = request.index();
  SuffixIndex::Cursor context = request.match();
  if (context.length < lookup_min_) return;
  const std::size_t begin = index.first_end(context.state) + 1;
  const std::size_t length = std::max(wanted.max_tokens, 0);
  const std::size_t end = std::min(begin + length, index.text().size());
  for (std::size_t i = begin; i < end; ++i) {
    const TokenId token = index.text()[i];
    const int count = index.count(index.Next(context.state, token));
    const int num_followed = index.num_followed(context.state);
    draft.AppendToChain(token, CountConfidence(count, num_followed, context.length));
    index.Advance(context, token, lookup_max_);
  }
}

}  // namespace forerun
