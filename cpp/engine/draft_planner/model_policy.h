// For which requests of a step to run a draft model: its drafts take time whether or not they are
// accepted.
//
// The model is run for the requests for which it is expected to save the most time together: the
// accepted tokens that it adds, each worth the time of a token in plain decoding, against the time
// of drafting them and of their rows in the target pass. What a request's drafts will yield is
// estimated from its last ones, and from those of all requests as long as these are few. Where the
// model has to catch up with a request first, as after a prompt, the drafts to come must save that
// time too.
//
// With any estimate, the model is run only while its TimeAccount is in credit. Besides, a small
// share of the time goes into trials of a model that is not expected to save any.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_MODEL_POLICY_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_MODEL_POLICY_H_

#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/engine/draft_planner/cost_model.h"
#include "cpp/engine/draft_planner/draft_history.h"
#include "cpp/engine/draft_planner/time_account.h"

namespace forerun {

class ModelPolicy {
 public:
  // A request that the model could draft for.
  struct Candidate {
    DraftHistory* history;
    int num_catch_up_tokens;
    int num_tokens_left;  // that can be drafted before the request ends
    bool runs = false;    // the choice
    double value = 0;     // scratch
  };

  // Drafts of up to max_draft_tokens are observed without an allocation. The cost model must
  // outlive the policy.
  ModelPolicy(const CostModel& cost, int max_draft_tokens, int max_candidates);

  // Chooses among the candidates of a step of num_rows known rows, one for each request that
  // decodes. To be called once per step that has candidates. REQUIRES: the cost model knows steps.
  void Choose(int num_rows, std::span<Candidate> candidates);

  // To be called for every step that emits, with an empty draft too. The model is credited only
  // with tokens that would not have been drafted without it.
  void ObserveVerdict(const DraftTree& draft, std::span<const int> accepted_nodes,
                      DraftHistory& history);

  // A path that is less probable is not worth another node in this step: its row in the target
  // pass, and its part of a forward pass of the model.
  double least_path_probability() const { return least_path_probability_; }

 private:
  // The nodes that the model added, and the accepted ones among them.
  struct Added {
    int num_nodes = 0, num_accepted = 0;
  };
  Added CountAdded(const DraftTree& draft, std::span<const int> accepted_nodes,
                   const DraftTree* draft_without_model);
  // What a draft of the request is expected to yield.
  struct Yield {
    double accepted, rows;
  };
  Yield YieldOf(const DraftHistory& history) const;
  // Of a draft of the request, without the time of drafting and of its rows.
  double ValueOf(const Candidate& candidate, double seconds_per_token) const;
  // How many of order_ to run the model for: those that are expected to save the most time.
  int FindBest(int num_rows) const;
  // How many of the first `num_wanted` are within the credit. Moves these to the front.
  int ChooseAffordable(int num_wanted);
  // Whether the time of trials allows one more. Moves that one after those that were chosen: the
  // one without a draft for the longest time.
  bool Try(int num_rows, int num_chosen);

  const CostModel& cost_;
  // Of all requests. Begins with a few good drafts: a drafter that was configured is worth a try.
  ModelYield all_ = {.num_drafts = 4, .num_accepted = 4, .num_rows = 8};
  TimeAccount account_{/*most_steps=*/3};
  double trial_seconds_ = 0;
  double row_seconds_ = 0;  // of a draft's row in this step
  double least_path_probability_ = 0;
  std::vector<Candidate*> order_;         // this step's; kept for its memory
  std::vector<int> nodes_without_model_;  // of a draft's nodes; kept for its memory
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_MODEL_POLICY_H_
