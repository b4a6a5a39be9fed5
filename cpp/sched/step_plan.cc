#include "cpp/sched/step_plan.h"

#include "cpp/sched/request.h"

namespace forerun {

std::string DebugString(const StepPlan& plan) {
  std::string text = std::to_string(plan.requests.size()) + " requests, " +
                     std::to_string(plan.num_rows) + " rows, " +
                     std::to_string(plan.num_preempted) + " preempted";
  for (const PlannedRequest& planned : plan.requests) {
    text += "\nrequest " + std::to_string(planned.request->id) + ": " +
            std::to_string(planned.request->table.num_committed()) + " committed, " +
            std::to_string(planned.num_pending) + " pending, " + std::to_string(planned.num_draft) +
            " of " + std::to_string(planned.request->draft.size()) + " draft tokens";
    if (planned.num_scored > 0) text += ", " + std::to_string(planned.num_scored) + " scored";
    if (planned.samples) text += ", samples";
  }
  return text;
}

}  // namespace forerun
