// Counts and times what an engine does. Nothing here allocates once a request is set up, except
// Prepare with record_draft_steps or while a trace is on.
//
// The Count calls belong to the thread that steps; SetUp may run on any.
#ifndef FORERUN_CPP_ENGINE_METRICS_RECORDER_H_
#define FORERUN_CPP_ENGINE_METRICS_RECORDER_H_

#include "cpp/engine/step_trace.h"
#include "cpp/sched/request.h"
#include "cpp/sched/step_plan.h"
#include "forerun/metrics.h"

namespace forerun {

class MetricsRecorder {
 public:
  MetricsRecorder(int max_model_len, int num_speculative_tokens, bool record_draft_steps);

  EngineMetrics& counters() { return counters_; }
  const EngineMetrics& counters() const { return counters_; }
  StepTrace& trace() { return trace_; }

  // At submission.
  void SetUp(Request& request) const;
  // Before the model runs: counts requests that are scheduled for the first time, and reserves
  // memory, so that commits do not allocate. `looks_up`: there is a prefix cache.
  void Prepare(const StepPlan& plan, bool looks_up);

  // Around the commits of one step. A request's commit comes before its draft is cleared.
  void BeginCommits(double now);
  void CountPrompt(Request& request, int num_computed_tokens);
  void CountEmitted(Request& request, int num_emitted, int num_accepted);
  void EndCommits();
  // Ends the trace's step too.
  void EndStep();

  void CountFinish(Request& request);

 private:
  void CountDraft(const Request& request, int num_accepted, SpecDecodeCounters& counters) const;

  const int num_speculative_tokens_;
  const bool record_draft_steps_;
  EngineMetrics counters_;
  StepTrace trace_;

  // This step's.
  double commit_time_ = 0;
  int num_step_tokens_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_METRICS_RECORDER_H_
