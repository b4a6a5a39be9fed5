// Drafts with an index of past text and with a model, and merges both drafts into one tree.
//
// The index drafts first: it costs next to nothing. Where it expects enough tokens to be accepted,
// the model is not run. Otherwise the model continues the index's draft tokens where these are more
// probable than its own, and the most probable path of the merged tree is continued by what
// followed its end in the request's own text.
#ifndef FORERUN_CPP_DRAFT_HYBRID_H_
#define FORERUN_CPP_DRAFT_HYBRID_H_

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cpp/draft/drafter.h"
#include "cpp/draft/neural/path_tree.h"
#include "cpp/draft/text/suffix.h"

namespace forerun {

class HybridDrafter : public Drafter {
 public:
  // The model is not run where the index expects at least `enough_tokens` to be accepted.
  // REQUIRES: the model's draft tokens are certain; sampled ones cannot be merged with others.
  HybridDrafter(std::unique_ptr<SuffixDrafter> index, std::unique_ptr<Drafter> model,
                double enough_tokens);

  void Begin(const NewRequest& request) override;
  void Observe(RequestId id, std::span<const TokenId> committed) override;
  void End(RequestId id) override;
  void Forget(RequestId id) override;
  std::optional<ModelWork> EstimateModelWork(const DraftRequest& request) const override {
    return model_->EstimateModelWork(request);
  }
  DraftingReport Prepare(std::span<const DraftRequest> requests) override;
  void Propose(const DraftRequest& request, DraftTree& draft) override;
  void Reset() override;
  bool Restore(std::span<const PastOutput> outputs, bool is_last) override {
    return index_->Restore(outputs, is_last);
  }

 private:
  struct Job {
    RequestId id;
    DraftTree indexed;
  };

  Job* FindJob(RequestId id);  // null where the request has none
  // Reserves memory for the longest drafts, since drafts get longer as texts grow.
  void Reserve(int max_tokens, Job& job);
  // Adds a draft's nodes to the tree, as descendants of `root`.
  void Merge(const DraftTree& draft, int root);

  const std::unique_ptr<SuffixDrafter> index_;
  const std::unique_ptr<Drafter> model_;
  const double enough_tokens_;

  // This step's; kept for their memory.
  std::vector<Job> jobs_;  // the first num_jobs_
  int num_jobs_ = 0;
  std::vector<DraftRequest> for_model_;
  std::vector<DraftingReport::OfRequest> request_reports_;
  DraftTree modelled_, extension_;
  PathTree tree_;
  std::vector<TokenId> path_;
  std::vector<int> merged_nodes_;  // of a draft: its nodes in the tree
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_HYBRID_H_
