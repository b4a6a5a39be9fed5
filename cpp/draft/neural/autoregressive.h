// Drafts with a network, token after token, for all requests at once.
//
// A draft is the best part of a tree that grows level by level: of the newest level the `width`
// most probable paths are continued by their `width` most probable tokens, as in EAGLE-2 (Li et
// al., "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees"); width 1 makes a
// chain. A path's probability is the product of the network's own along it. A tree can have a shape
// that is fixed instead, as Medusa's (Cai et al., "Medusa: Simple LLM Inference Acceleration
// Framework with Multiple Decoding Heads"). Sampled drafts are chains.
//
// A network with keys and values is brought in step with what was committed when a draft is wanted,
// and only there: for the known tokens it has not seen, from the target's features, which replaces
// what drafted tokens had left behind.
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

namespace forerun {

struct AutoregressiveSetting {
  int width = 1;
  TreeShape shape;  // empty: the tree grows by probabilities, `width` wide
  int max_depth = 1;
  bool is_sampled =
      false;           // with a temperature, guesses are drawn from the network's probabilities
  int vocab_size = 0;  // the target's
  int max_rows = 0;    // of one forward of the network
  int num_blocks = 0;
  DraftRecorder* recorder = nullptr;  // for tests; must outlive the drafter
};

class AutoregressiveDrafter : public Drafter {
 public:
  // `features` are the target's, null for a network that reads none; they must outlive the drafter.
  AutoregressiveDrafter(std::unique_ptr<DraftNetwork> network, const FeatureStore* features,
                        const AutoregressiveSetting& setting);

  void Begin(RequestId /*id*/, std::span<const TokenId> /*prompt*/) override {}
  void Observe(RequestId /*id*/, std::span<const TokenId> /*committed*/) override {}
  void End(RequestId /*id*/) override {}
  void Forget(RequestId /*id*/) override {}
  std::optional<ModelWork> EstimateModelWork(const DraftRequest& request) const override;
  DraftingReport Prepare(std::span<const DraftRequest> requests) override;
  void Propose(const DraftRequest& request, DraftTree& draft) override;
  void Reset() override {}

 private:
  // A request's draft in the making.
  struct Job {
    const DraftRequest* request = nullptr;
    PathTree tree;
    DraftTree sampled;  // where guesses are drawn
    bool is_sampled = false;
    bool is_over = false;
    int first_output = 0;  // its rows' place among the last forward's logits rows
    int num_rows = 0;      // of the last level
  };

  // Known tokens of a request, [begin, end) by slot.
  struct KnownRun {
    Job* job;
    int begin, end;
  };

  int FindJob(RequestId id) const;  // -1 where the request has none
  int num_known(const Job& job) const { return static_cast<int>(job.request->tokens.size()); }
  // Calls run(begin, end) for all slots before the last known token's that are out of step.
  template <typename Run>
  void EachMissingRun(const DraftRequest& request, Run run) const;
  int MostOwnNodes() const;  // of a tree, without a guide's
  // Of all jobs: what the network has not seen, and the last token.
  void RunKnownTokens();
  void RunKnown(std::span<const KnownRun> runs, bool with_logits);
  void RunLevel(int depth);
  void Grow(Job& job, int depth, ConstRows logits);
  // The guesses behind a node that become nodes.
  void AddGuesses(Job& job, int parent, std::span<const float> logits);
  // What the request's guide guesses behind a node whose path is one of its own.
  void AddGuide(Job& job, int parent);
  void GrowSampled(Job& job, int depth, std::span<const float> logits);
  void Record(const Job& job, int depth, ConstRows logits);
  std::span<const float> InTargetIds(std::span<const float> logits);
  TokenId TargetId(TokenId token) const {
    const std::span<const TokenId> ids = network_->target_ids();
    return ids.empty() ? token : ids[token];
  }
  void ClearBatch();

  // Fixed at construction.
  const std::unique_ptr<DraftNetwork> network_;
  const FeatureStore* const features_;
  const AutoregressiveSetting setting_;

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
  std::vector<RankedToken> top_;
  std::vector<TokenId> path_;
  std::vector<float> target_logits_, target_weights_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_AUTOREGRESSIVE_H_
