// What one step will run. Plain data.
#ifndef FORERUN_CPP_SCHED_STEP_PLAN_H_
#define FORERUN_CPP_SCHED_STEP_PLAN_H_

#include <string>
#include <vector>

namespace forerun {

struct Request;

// num_pending rows of known tokens, then one row for each of the draft's first num_draft nodes.
struct PlannedRequest {
  Request* request = nullptr;
  int num_pending = 0;
  int num_draft = 0;
  bool samples = false;  // the last known token is among the rows, so the step emits something
  int num_scored = 0;    // rows of the prompt whose logits are wanted, for prompt_logprobs

  int num_rows() const { return num_pending + num_draft; }
};

struct StepPlan {
  std::vector<PlannedRequest> requests;
  int num_rows = 0;
  int num_scored_rows = 0;
  int num_preempted = 0;

  void Clear() {
    requests.clear();
    num_rows = 0;
    num_scored_rows = 0;
    num_preempted = 0;
  }
};

// One line for the step and one for each request. Before StepBatch cuts the drafts to the plan.
std::string DebugString(const StepPlan& plan);

}  // namespace forerun

#endif  // FORERUN_CPP_SCHED_STEP_PLAN_H_
