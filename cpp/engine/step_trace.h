// Times the parts of each step and, while a trace is on, writes them to a file in Chrome's trace
// format, for chrome://tracing and ui.perfetto.dev. docs/tracing.md explains how to read one.
//
// The file is complete JSON after every step. Nothing has to be closed: a process that is killed
// leaves a valid trace of the steps before. The trace is off in the child of a fork: the file is
// its parent's.
//
// Without a trace only the times are kept: a clock read per part.
#ifndef FORERUN_CPP_ENGINE_STEP_TRACE_H_
#define FORERUN_CPP_ENGINE_STEP_TRACE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "cpp/sched/step_plan.h"
#include "forerun/types.h"

namespace forerun {

// In the order in which they run. A step without requests ends with kPlan.
enum class StepPart { kDraft, kPlan, kForward, kVerify, kCommit };
inline constexpr int kNumStepParts = 5;

class StepTrace {
 public:
  // Begins a trace with the next step; an existing file is overwritten. False, and nothing done,
  // while another trace is on. Throws InvalidArgument for `field` when the file cannot be written.
  bool Start(const std::string& path, const std::string& field);
  // Ends the trace, if one is on. Throws InvalidArgument when a part of it could not be written.
  void Stop();

  void BeginStep() noexcept;
  // Ends the part before.
  void BeginPart(StepPart part) noexcept;
  // In kVerify, where the forward pass was only started in its part: it took this long, and the
  // verification began when it was over.
  void SetForwardSeconds(double seconds) noexcept;
  // The requests and rows of the step. Allocates while a trace is on.
  void SetPlan(const StepPlan& plan);
  // Once for each planned request, in the plan's order.
  void CountCommit(int num_accepted, int num_emitted) noexcept;
  // Writes the step. `failed`: it threw, so the part that has begun is its last.
  void EndStep(bool failed = false) noexcept;

  // Of the current step: when a part began, and how long it took; 0 where it did not run.
  double begin(StepPart part) const { return part_spans_[Index(part)].begin; }
  double seconds(StepPart part) const { return part_spans_[Index(part)].seconds(); }
  // Of the last step that ended.
  double step_seconds() const { return step_span_.seconds(); }

 private:
  struct Span {
    double begin = 0, end = 0;
    double seconds() const { return end - begin; }
  };
  struct RequestCounts {
    RequestId id = 0;
    int num_rows = 0, num_draft = 0, num_accepted = 0, num_emitted = 0;
  };

  static std::size_t Index(StepPart part) { return static_cast<std::size_t>(part); }
  bool is_on();
  void Write(const std::string& events);
  std::string StepEvents(bool failed) const;

  // This step's.
  Span step_span_;
  std::array<Span, kNumStepParts> part_spans_;
  Span* open_span_ = nullptr;  // the part that has begun last
  std::vector<RequestCounts> requests_;
  std::size_t num_committed_ = 0;  // of requests_
  int num_preempted_ = 0;

  // The trace's.
  std::ofstream file_;
  std::string path_, field_;
  double trace_begin_ = 0;
  int num_forks_ = 0;  // of the process when the trace began
  std::int64_t num_steps_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_STEP_TRACE_H_
