// Decides which requests draft in a step, proposes their drafts and chooses how much of them to
// verify.
//
// A request with a prediction drafts from that as long as the output follows it, else with the
// drafter, and from a short match in the prediction where the drafter has nothing.
//
// The planner owns everything that is known about drafts: the history of each request, the cost
// model, and the two decisions that are based on them, ModelPolicy before drafting and
// DraftLengthController after it.
//
// If a drafter throws, its request continues without a drafter; the message is kept. Two kinds of
// exception are passed on: InternalError (our bug) and std::bad_alloc. In Draft they leave the
// call, which can be retried. In Begin, Observe and End the request loses its drafter and the step
// goes on, so that its commit is whole; RethrowFailure throws them at its end.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_PLANNER_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_PLANNER_H_

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cpp/draft/drafter.h"
#include "cpp/draft_tree/draft_constrainer.h"
#include "cpp/draft_tree/step_masks.h"
#include "cpp/engine/draft_planner/cost_model.h"
#include "cpp/engine/draft_planner/draft_history.h"
#include "cpp/engine/draft_planner/draft_length.h"
#include "cpp/engine/draft_planner/model_policy.h"
#include "cpp/sched/request.h"
#include "cpp/sched/step_plan.h"
#include "forerun/types.h"

namespace forerun {

struct DraftPlannerSetting {
  int num_speculative_tokens = 0;
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;
  bool adaptive = true;
  // As CostModel's.
  std::function<int(int)> padded_rows = {};
};

class DraftPlanner {
 public:
  // The drafter (null: only forced tokens are drafted) must outlive the planner.
  DraftPlanner(const DraftPlannerSetting& setting, Drafter* drafter);

  // Sets request.has_drafter and request.can_speculate.
  void SetUp(Request& request) const;

  // A request's life. Register may throw, and may be called again; the others do not throw.
  void Register(const Request& request);
  void Begin(Request& request);
  // Before the request's draft is cleared. `committed` are the emitted tokens.
  void Observe(Request& request, std::span<const TokenId> committed,
               std::span<const int> accepted_nodes);
  void End(Request& request);

  // Fills the drafts of running requests, and reserves the slots that they need. Opens the batches
  // of their constraints.
  void Draft(std::span<const std::unique_ptr<Request>> running, StepMasks& masks);
  // The step that was planned has run the model.
  void ObserveStep(const StepPlan& plan, double model_seconds);
  // Throws what was kept back since the last call.
  void RethrowFailure();

  void Reset();
  // As Drafter::Restore; may be called in any thread.
  bool Restore(std::span<const PastOutput> outputs, bool is_last);

  // Requests that lost their drafter, and the message of the first failure.
  std::int64_t num_failures() const { return num_failures_; }
  const std::string& first_failure() const { return first_failure_; }

 private:
  // A request that drafts in this step.
  struct Drafting {
    Request* request;
    DraftHistory* history;
    int max_tokens;
    int num_catch_up_tokens = 0;
    bool runs_model = false;  // the drafter has a model
    int num_slots = 0;        // ModelWork's
    int index = -1;           // in draft_requests_; -1 where the drafter is not called
  };

  void FindRequests(std::span<const std::unique_ptr<Request>> running);
  // How many tokens the prediction of each may draft, where the method drafts fewer.
  static int PredictedTokensOfEach(std::span<const std::unique_ptr<Request>> running);
  void AddDraftRequest(int max_tokens, Drafting& drafting);
  // Decides which of this step's requests run the model. num_rows are those without drafts.
  void ChooseForModel(int num_rows);
  void Prepare();
  void ObserveDrafting(const DraftingReport& report, double seconds);
  void Propose(const Drafting& drafting);
  void CallDrafter(const Drafting& drafting);
  static void ProposePredicted(int max_tokens, Request& request);
  void ConstrainDrafts(StepMasks& masks);
  void ChooseNodes(std::span<const std::unique_ptr<Request>> running);

  // Calls the drafter of a request that has one. Keeps back what must not be hidden.
  template <typename Call>
  void Guarded(Request& request, const Call& call);
  // The request goes on without drafts, except for forced tokens. Does not throw.
  void DropDrafter(Request& request, std::string_view reason);

  const DraftPlannerSetting setting_;
  Drafter* const drafter_;

  std::unordered_map<RequestId, DraftHistory> history_;
  CostModel cost_{setting_.padded_rows};
  ModelPolicy model_policy_{cost_, setting_.num_speculative_tokens, setting_.max_num_seqs};
  DraftLengthController controller_;
  DraftConstrainer constrainer_;
  std::int64_t num_failures_ = 0;
  std::string first_failure_;
  std::exception_ptr kept_back_;

  // This step's; kept for their memory.
  std::vector<Drafting> drafting_;
  std::vector<DraftRequest> draft_requests_;  // of those with a drafter
  std::vector<ModelPolicy::Candidate> for_model_;
  DraftingReport report_;
  std::vector<DraftLengthController::Candidate> candidates_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_PLANNER_H_
