// Drafts with a network, token after token, for all requests at once.
//
// A draft is the most probable part of a tree that grows level by level: of the newest level the
// `width` most probable paths are continued by their `width` most probable tokens, as in EAGLE-2
// (Li et al., "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees"); width 1
// makes a chain. A path's probability is the product of the network's probabilities along it. A
// tree can have a fixed shape instead, as in Medusa (Cai et al., "Medusa: Simple LLM Inference
// Acceleration Framework with Multiple Decoding Heads"). Sampled drafts are chains.
//
// A network with keys and values catches up with the committed tokens when a draft is wanted, and
// not before: it computes the known tokens that it has not computed yet, from the target's
// auxiliary hidden states, and overwrites what earlier draft tokens left in their slots.
#ifndef FORERUN_CPP_DRAFT_NEURAL_AUTOREGRESSIVE_H_
#define FORERUN_CPP_DRAFT_NEURAL_AUTOREGRESSIVE_H_

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cpp/draft/drafter.h"
#include "cpp/draft/neural/draft_network.h"
#include "cpp/draft/neural/draft_recorder.h"
#include "cpp/draft/neural/path_tree.h"
#include "cpp/draft/neural/synced_slots.h"
#include "cpp/draft/neural/tree_shape.h"
#include "cpp/model/features.h"
#include "cpp/sampling/sampler.h"
#include "cpp/verify/verifier.h"

namespace forerun {

struct AutoregressiveSetting {
  int width = 1;
  TreeShape shape;  // empty: the tree grows by probabilities, `width` wide
  int max_depth = 1;
  bool is_sampled =
      false;  // with a temperature, draft tokens are sampled from the network's probabilities
  int vocab_size = 0;  // the target's
  int max_rows = 0;    // of one forward of the network
  int num_blocks = 0;
  DraftRecorder* recorder = nullptr;  // for tests; must outlive the drafter
  Memory* memory = &HostMemory();     // where the network's logits lie
  // Chains under rejection or block are drawn by the verifier.
  bool draws_on_device = false;
};

class AutoregressiveDrafter : public Drafter {
 public:
  // The verifier finds candidates in the network's logits. `features` are the target's, null for a
  // network that reads none; they must outlive the drafter.
  AutoregressiveDrafter(std::unique_ptr<DraftNetwork> network, std::unique_ptr<Verifier> verifier,
                        const FeatureStore* features, const AutoregressiveSetting& setting);

  // As DraftNetwork's. The setting's num_blocks were 0.
  void ReserveBlocks(int num_blocks) {
    network_->ReserveBlocks(num_blocks);
    synced_ = SyncedSlots(num_blocks);
  }

  void Begin(const NewRequest& /*request*/) override {}
  void Observe(RequestId /*id*/, std::span<const TokenId> /*committed*/) override {}
  void End(RequestId /*id*/) override {}
  void Forget(RequestId /*id*/) override {}
  std::optional<ModelWork> EstimateModelWork(const DraftRequest& request) const override;
  DraftingReport Prepare(std::span<const DraftRequest> requests) override;
  void Propose(const DraftRequest& request, DraftTree& draft) override;
  void Reset() override {}
  bool Restore(std::span<const PastOutput> /*outputs*/, bool /*is_last*/) override { return false; }

 private:
  // The unfinished draft of a request.
  struct Job {
    const DraftRequest* request = nullptr;
    PathTree tree;
    DraftTree sampled;  // where draft tokens are sampled
    bool is_sampled = false;
    bool is_over = false;
    int first_output = 0;  // the first of its rows among the logits of the last forward pass
    int num_rows = 0;      // of the last level
  };

  // Known tokens of a request, [begin, end) by slot.
  struct KnownRun {
    Job* job;
    int begin, end;
  };

  int FindJob(RequestId id) const;  // -1 where the request has none
  int num_known(const Job& job) const { return static_cast<int>(job.request->tokens.size()); }
  // Calls run(begin, end) for all slots before the last known token's that are not synced.
  template <typename Run>
  void EachMissingRun(const DraftRequest& request, Run run) const;
  int MaxOwnNodes() const;  // of a tree, without those of a prior draft
  // Of all jobs: the known tokens that the network has not computed, and the last token.
  void RunKnownTokens();
  void RunKnown(std::span<const KnownRun> runs, bool with_logits);
  void RunLevel(int depth);
  // A chain whose tokens the host does not need before it is over: every level takes its tokens
  // from the device's memory, and the host waits once (autoregressive_chain.cc).
  bool IsDeferred() const;
  void DeferLevel(int depth, ConstRows logits);
  bool RunDeferredLevel(int depth);
  void GrowDeferred();
  // Adds the token that was drawn after a job's chain. False: the row is not finite.
  bool GrowDrawn(Job& job, int depth);
  int WeightsRow(const Job& job) const {
    return static_cast<int>(&job - jobs_.data()) * setting_.max_depth;
  }
  // Continues all drafts from the logits of a forward pass.
  void Grow(int depth, ConstRows logits);
  // Finds candidates_ of the jobs whose drafts are not sampled.
  void FindCandidates(int depth, ConstRows logits);
  int NumRanked(const Job& job, int parent) const;  // how many candidates after a node matter
  void GrowJob(Job& job, int depth, ConstRows logits);
  // Adds the network's candidates after a node, which are those of its i-th row. False: the row is
  // not finite.
  bool AddCandidates(Job& job, int parent, int i);
  // Adds the prior draft's tokens after a node, if the node is in the prior draft too.
  void AddPriorDraft(Job& job, int parent);
  void GrowSampled(Job& job, int depth, std::span<const float> logits);
  void Record(const Job& job, int depth, ConstRows logits);
  // A row where the host can read it, until the next call.
  std::span<const float> HostRow(ConstRows logits, int row);
  std::span<const float> InTargetIds(std::span<const float> logits);
  TokenId TargetId(TokenId token) const {
    const std::span<const TokenId> ids = network_->target_ids();
    return ids.empty() ? token : ids[token];
  }
  void ClearBatch();

  // Fixed at construction.
  const std::unique_ptr<DraftNetwork> network_;
  const std::unique_ptr<Verifier> verifier_;
  const FeatureStore* const features_;
  const AutoregressiveSetting setting_;

  AlignedBuffer device_ids_;  // the network's target_ids() in its memory, where that is a device's

  SyncedSlots synced_;
  SamplerScratch scratch_;

  // This step's; kept for their memory.
  std::vector<Job> jobs_;  // the first num_jobs_
  int num_jobs_ = 0;
  DraftingReport report_;
  std::vector<DraftingReport::OfRequest> request_reports_;
  std::vector<KnownRun> runs_, chunk_;
  std::vector<TokenId> tokens_;
  std::vector<SequenceRows> sequences_;
  std::vector<std::int32_t> logits_rows_, sources_;
  bool is_deferred_ = false;
  std::vector<int> level_outputs_;  // [levels, num_jobs_] of the round's top tokens; -1: none
  std::size_t num_deferred_ = 0;
  const TopToken* top_tokens_ = nullptr;  // of the last level
  std::vector<Draw> draws_;               // of the level's rows
  const float* drawn_weights_ = nullptr;  // of all drafts, in the device's memory
  std::vector<TopToken> candidates_;      // [rows of logits, num_ranked_]
  int num_ranked_ = 0;
  std::vector<TokenId> path_;
  std::vector<float> target_logits_, target_weights_, host_row_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_AUTOREGRESSIVE_H_
