// The interface between the engine and what proposes draft tokens.
//
// The engine reports every request's life: Begin with its prompt, Observe with the tokens that were
// committed, End (finished, so its output is worth remembering) or Forget (cancelled). Drafting
// happens between any two of these calls, in three calls: EstimateModelWork, Prepare with all
// requests of a step at once, Propose for each of them.
//
// All methods are pure, so that a drafter that wraps another one must forward every one of them. A
// drafter without a network derives from TextDrafter.
#ifndef FORERUN_CPP_DRAFT_DRAFTER_H_
#define FORERUN_CPP_DRAFT_DRAFTER_H_

#include <optional>
#include <span>
#include <string_view>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/kv/block_table.h"
#include "cpp/sampling/sampler.h"
#include "forerun/past_output.h"
#include "forerun/types.h"

namespace forerun {

// A request that begins.
struct NewRequest {
  RequestId id;
  std::span<const TokenId> prompt;
  // Whose outputs it may learn from, and who may learn from its own (SubmitOptions::cache_salt).
  std::string_view tenant = {};
};

// What a draft is wanted for.
struct DraftRequest {
  RequestId id;
  int max_tokens;  // the most nodes
  // How the target samples, and the output index of the first draft token: needed by drafters that
  // sample their draft tokens (cpp/sampling/draft_sampling.h) and by no others.
  const SamplingRule& rule;
  int first_output_index;
  // For models: prompt and output, and the blocks that hold the KV of all of it but the last token.
  // Where the model may run, ModelWork::num_slots more slots are reserved.
  std::span<const TokenId> tokens = {};
  const BlockTable* table = nullptr;
  // Paths that are less probable need not be continued.
  double least_path_probability = 0.0;
  // Its slots are reserved, and running the model is expected to save time.
  bool may_run_model = true;
  // The draft of another drafter, which a model may continue; null: none.
  const DraftTree* prior_draft = nullptr;
};

// What a draft by a model takes.
struct ModelWork {
  // Slots after the committed tokens that drafting writes. They belong to the request until its
  // next commit.
  int num_slots = 0;
  // Known tokens of the request, except the last, that the model has not computed yet.
  int num_catch_up_tokens = 0;
};

// What Prepare did.
struct DraftingReport {
  struct OfRequest {
    bool ran_model = false;
    // What would have been drafted without the model; null: nothing. Valid until the next Prepare.
    const DraftTree* draft_without_model = nullptr;
  };

  int num_forwards = 0;         // forward passes of the model
  int num_catch_up_tokens = 0;  // that they computed, each request's last known token not counted
  // In the order of Prepare's requests; empty where no model was run. Valid until the next Prepare.
  std::span<const OfRequest> requests = {};
};

class Drafter {
 public:
  virtual ~Drafter() = default;

  virtual void Begin(const NewRequest& request) = 0;
  virtual void Observe(RequestId id, std::span<const TokenId> committed) = 0;
  virtual void End(RequestId id) = 0;
  virtual void Forget(RequestId id) = 0;

  // Absent where drafting runs no model.
  virtual std::optional<ModelWork> EstimateModelWork(const DraftRequest& request) const = 0;

  // Called once per step, before Propose, with all requests of the step: drafters that are cheaper
  // for many requests at once draft here. The requests stay valid until the step's last Propose.
  virtual DraftingReport Prepare(std::span<const DraftRequest> requests) = 0;

  // Fills `draft`, which the caller has cleared, with at most max_tokens nodes; leaves it empty
  // where there is no candidate. Does not change what later proposals of other requests see. The
  // number of sampled nodes must not depend on what was sampled: drafts are truncated where rows
  // run out, and dropped where KV blocks run out.
  virtual void Propose(const DraftRequest& request, DraftTree& draft) = 0;

  // Drops what is remembered of past requests.
  virtual void Reset() = 0;

  // Learns from outputs of earlier engines, as Engine::RestoreOutputs does. The only method that
  // another thread may call while this one is used.
  virtual bool Restore(std::span<const PastOutput> outputs, bool is_last) = 0;
};

// A drafter that runs no model.
class TextDrafter : public Drafter {
 public:
  std::optional<ModelWork> EstimateModelWork(const DraftRequest& /*request*/) const final {
    return {};
  }
  DraftingReport Prepare(std::span<const DraftRequest> /*requests*/) final { return {}; }
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_DRAFTER_H_
