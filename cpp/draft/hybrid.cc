#include "cpp/draft/hybrid.h"

#include <utility>

namespace forerun {

HybridDrafter::HybridDrafter(std::unique_ptr<SuffixDrafter> index, std::unique_ptr<Drafter> model,
                             double enough_tokens)
    : index_(std::move(index)), model_(std::move(model)), enough_tokens_(enough_tokens) {}

void HybridDrafter::Begin(RequestId id, std::span<const TokenId> prompt) {
  index_->Begin(id, prompt);
  model_->Begin(id, prompt);
}

void HybridDrafter::Observe(RequestId id, std::span<const TokenId> committed) {
  index_->Observe(id, committed);
  model_->Observe(id, committed);
}

void HybridDrafter::End(RequestId id) {
  index_->End(id);
  model_->End(id);
}

void HybridDrafter::Forget(RequestId id) {
  index_->Forget(id);
  model_->Forget(id);
}

void HybridDrafter::Reset() {
  index_->Reset();
  model_->Reset();
}

void HybridDrafter::Prepare(std::span<const DraftRequest> requests) {
  for_model_.clear();
  for (const DraftRequest& request : requests) {
    indexed_.Clear();
    index_->Propose(request, indexed_);
    tree_.Clear();
    Merge(indexed_, kDraftRoot);
    for_model_.push_back(request);
    if (tree_.SumOfPathProbabilities() >= enough_tokens_) for_model_.back().may_run_model = false;
  }
  model_->Prepare(for_model_);
}

void HybridDrafter::Propose(const DraftRequest& request, Draft& draft) {
  modelled_.Clear();
  model_->Propose(request, modelled_);
  indexed_.Clear();
  index_->Propose(request, indexed_);
  tree_.Clear();
  Merge(modelled_, kDraftRoot);
  if (!modelled_.empty()) {
    const int end = tree_.EndOfBestPath();
    tree_.PathTo(end, path_);
    extension_.Clear();
    index_->ProposeBehind(request, path_, extension_);
    Merge(extension_, end);
  }
  Merge(indexed_, kDraftRoot);
  tree_.WriteBest(request.max_tokens, draft);
}

void HybridDrafter::Merge(const Draft& draft, int root) {
  places_.clear();
  for (int i = 0; i < draft.size(); ++i) {
    const int parent = draft.parents[i] == kDraftRoot ? root : places_[draft.parents[i]];
    places_.push_back(tree_.AddOrRaise(draft.tokens[i], parent, draft.confidence[i]));
  }
}

}  // namespace forerun
