// Whether to run a draft model for a request: its drafts take time whether or not they are
// accepted.
//
// The model is run where it is expected to save time: the accepted tokens that it adds, each worth
// the time of a token in plain decoding, against the time of drafting them and of their rows in the
// target pass. What a request's drafts will yield is estimated from its last ones, and from those
// of all requests as long as these are few. Where the model has to catch up with the request first,
// as after a prompt, the drafts to come must save that time too. A model that is not expected to
// save time is tried now and then, for a small share of the time that goes by without it.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_MODEL_POLICY_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_MODEL_POLICY_H_

#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/engine/draft_planner/cost_model.h"
#include "cpp/engine/draft_planner/draft_history.h"

namespace forerun {

class ModelPolicy {
 public:
  // Drafts of up to max_draft_tokens are observed without an allocation. The cost model must
  // outlive the policy.
  ModelPolicy(const CostModel& cost, int max_draft_tokens);

  // Whether to run the model for a request that can draft num_tokens_left tokens before it ends.
  // seconds_per_token is the time of a token in plain decoding. To be called once per step.
  bool ShouldRun(double seconds_per_token, int num_catch_up_tokens, int num_tokens_left,
                 DraftHistory& history);

  // To be called for every step that emits, with an empty draft too. The model is credited only
  // with tokens that would not have been drafted without it.
  void ObserveVerdict(const DraftTree& draft, std::span<const int> accepted_nodes,
                      DraftHistory& history);

  // Leaves what an ended request did not use for trials to the next one.
  void End(const DraftHistory& history) { unused_trial_seconds_ += history.trial_seconds; }

  // A path that is less probable is not worth another node: its row in the target pass, and its
  // part of a forward pass of the model.
  double LeastPathProbability(double seconds_per_token) const;

 private:
  // The nodes that the model added, and the accepted ones among them.
  struct Added {
    int num_nodes = 0, num_accepted = 0;
  };
  Added CountAdded(const DraftTree& draft, std::span<const int> accepted_nodes,
                   const DraftTree* draft_without_model);

  const CostModel& cost_;
  // Of all requests. Begins with a few good drafts: a drafter that was configured is worth a try.
  ModelYield all_ = {.num_drafts = 4, .num_accepted = 4, .num_rows = 8};
  double unused_trial_seconds_ = 0;
  std::vector<int> nodes_without_model_;  // of a draft's nodes; kept for its memory
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_MODEL_POLICY_H_
