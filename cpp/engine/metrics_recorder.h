// Counts what an engine does. Nothing here allocates once a request is set up, except Prepare where
// every draft of a request is recorded.
//
// The Count calls belong to the thread that steps; SetUp may run on any.
#ifndef FORERUN_CPP_ENGINE_METRICS_RECORDER_H_
#define FORERUN_CPP_ENGINE_METRICS_RECORDER_H_

#include "cpp/sched/request.h"
#include "cpp/sched/step_plan.h"
#include "forerun/metrics.h"

namespace forerun {

struct StepTimes {
  double draft_seconds = 0, model_seconds = 0, verify_seconds = 0;
};

class MetricsRecorder {
 public:
  MetricsRecorder(int max_model_len, int num_speculative_tokens, bool record_draft_steps);

  EngineMetrics& counters() { return counters_; }
  const EngineMetrics& counters() const { return counters_; }

  // At submission.
  void SetUp(Request& request) const;
  // Before the model runs: counts who was scheduled for the first time, and makes room, so that
  // commits do not allocate. `looks_up` says whether there is a prefix cache.
  void Prepare(const StepPlan& plan, bool looks_up);

  // Around the commits of one step. A request's commit comes before its draft is cleared.
  void BeginCommits(double now);
  void CountPrompt(int num_computed_tokens);
  void CountEmitted(Request& request, int num_emitted, int num_accepted);
  void EndCommits();
  void CountStep(const StepTimes& times, double total_seconds);

  void CountFinish(Request& request);

 private:
  void CountDraft(const Request& request, int num_accepted, SpecDecodeCounters& counters) const;

  const int num_speculative_tokens_;
  const bool record_draft_steps_;
  EngineMetrics counters_;

  // This step's.
  double commit_time_ = 0;
  int num_step_tokens_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_METRICS_RECORDER_H_
