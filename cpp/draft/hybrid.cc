#include "cpp/draft/hybrid.h"

#include <algorithm>
#include <utility>

namespace forerun {

HybridDrafter::HybridDrafter(std::unique_ptr<SuffixDrafter> index, std::unique_ptr<Drafter> model,
                             double enough_tokens)
    : index_(std::move(index)), model_(std::move(model)), enough_tokens_(enough_tokens) {}

void HybridDrafter::Begin(const NewRequest& request) {
  index_->Begin(request);
  model_->Begin(request);
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

DraftingReport HybridDrafter::Prepare(std::span<const DraftRequest> requests) {
  if (jobs_.size() < requests.size()) jobs_.resize(requests.size());
  num_jobs_ = 0;
  for_model_.clear();
  for (const DraftRequest& request : requests) {
    Job& job = jobs_[num_jobs_++];
    job.id = request.id;
    job.indexed.Clear();
    Reserve(request.max_tokens, job);
    index_->Propose(request, job.indexed);
    tree_.Clear();
    Merge(job.indexed, kDraftRoot);
    for_model_.push_back(request);
    for_model_.back().prior_draft = &job.indexed;
    if (tree_.SumOfPathProbabilities() >= enough_tokens_) for_model_.back().may_run_model = false;
  }
  DraftingReport report = model_->Prepare(for_model_);
  request_reports_.assign(requests.size(), {});
  for (std::size_t i = 0; i < report.requests.size(); ++i) {
    request_reports_[i] = {report.requests[i].ran_model, &jobs_[i].indexed};
  }
  report.requests = request_reports_;
  return report;
}

void HybridDrafter::Reserve(int max_tokens, Job& job) {
  for (DraftTree* draft : {&job.indexed, &modelled_, &extension_}) draft->Reserve(max_tokens);
  tree_.Reserve(3 * max_tokens);
  path_.reserve(max_tokens);
  merged_nodes_.reserve(max_tokens);
}

void HybridDrafter::Propose(const DraftRequest& request, DraftTree& draft) {
  const Job* const job = FindJob(request.id);
  if (job == nullptr) return;
  modelled_.Clear();
  model_->Propose(request, modelled_);
  tree_.Clear();
  Merge(modelled_, kDraftRoot);
  if (!modelled_.empty()) {
    const int end = tree_.EndOfBestPath();
    tree_.PathTo(end, path_);
    extension_.Clear();
    index_->ProposeAfter(request, path_, extension_);
    Merge(extension_, end);
  }
  Merge(job->indexed, kDraftRoot);
  tree_.WriteBest(request.max_tokens, draft);
}

HybridDrafter::Job* HybridDrafter::FindJob(RequestId id) {
  for (Job& job : std::span(jobs_).first(num_jobs_)) {
    if (job.id == id) return &job;
  }
  return nullptr;
}

void HybridDrafter::Merge(const DraftTree& draft, int root) {
  merged_nodes_.clear();
  for (int i = 0; i < draft.size(); ++i) {
    const int parent = draft.parents[i] == kDraftRoot ? root : merged_nodes_[draft.parents[i]];
    merged_nodes_.push_back(tree_.AddOrRaise(draft.tokens[i], parent, draft.confidence[i]));
  }
}

}  // namespace forerun
