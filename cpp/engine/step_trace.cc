#include "cpp/engine/step_trace.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <utility>

#include "cpp/sched/request.h"
#include "cpp/util/clock.h"
#include "cpp/util/fork.h"
#include "forerun/error.h"

namespace forerun {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kPartNames[kNumStepParts] = {"draft", "plan", "forward", "verify", "commit"};
constexpr std::string_view kFileEnd = "\n]}\n";

// Of the one timeline that a trace has.
constexpr int kThread = 1;

Json NameEvent(const char* what, const char* name) {
  return {
      {"name", what}, {"ph", "M"}, {"pid", getpid()}, {"tid", kThread}, {"args", {{"name", name}}}};
}

// Times are whole nanoseconds, so that a part does not end after its step by a rounding error.
Json SpanEvent(const char* name, double begin, double end, Json args) {
  const auto begin_ns = std::llround(begin * 1e9);
  const auto end_ns = std::llround(end * 1e9);
  return {{"name", name},
          {"ph", "X"},
          {"pid", getpid()},
          {"tid", kThread},
          {"ts", static_cast<double>(begin_ns) / 1e3},
          {"dur", static_cast<double>(end_ns - begin_ns) / 1e3},
          {"args", std::move(args)}};
}

}  // namespace

bool StepTrace::Start(const std::string& path, const std::string& field) {
  if (is_on()) return false;
  errno = 0;
  file_.clear();
  // Unbuffered, so that the child of a fork has nothing of its parent's to write.
  file_.rdbuf()->pubsetbuf(nullptr, 0);
  file_.open(path, std::ios::binary | std::ios::trunc);
  path_ = path;
  field_ = field;
  trace_begin_ = Now();
  num_steps_ = 0;
  num_forks_ = NumForks();
  if (file_) {
    Write("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n" +
          NameEvent("process_name", "forerun").dump() + ",\n" +
          NameEvent("thread_name", "engine steps").dump());
  }
  if (!file_) {
    const std::string reason = std::generic_category().message(errno);
    file_.close();
    throw InvalidArgument(field, "'" + path + "'", "a file that can be written: " + reason);
  }
  return true;
}

void StepTrace::Stop() {
  if (!is_on()) return;
  const bool is_complete = file_.good();
  file_.close();
  if (!is_complete) {
    throw InvalidArgument(field_, "'" + path_ + "'",
                          "a file that can be written to its end: a write failed, and the trace "
                          "lacks the steps from there on");
  }
}

// The child of a fork shares the position in the file with its parent, and must not move it.
bool StepTrace::is_on() {
  if (file_.is_open() && NumForks() != num_forks_) file_.close();
  return file_.is_open();
}

// The next events overwrite the end of the file.
void StepTrace::Write(const std::string& events) {
  file_ << events + std::string(kFileEnd);  // in one write
  file_.seekp(-static_cast<std::streamoff>(kFileEnd.size()), std::ios::cur);
}

void StepTrace::BeginStep() noexcept {
  part_spans_.fill({});
  open_span_ = nullptr;
  requests_.clear();
  num_committed_ = 0;
  num_preempted_ = 0;
  step_span_ = {.begin = Now()};
}

void StepTrace::BeginPart(StepPart part) noexcept {
  const double now = Now();
  if (open_span_ != nullptr) open_span_->end = now;
  open_span_ = &part_spans_[Index(part)];
  open_span_->begin = now;
}

void StepTrace::SetForwardSeconds(double seconds) noexcept {
  Span& forward = part_spans_[Index(StepPart::kForward)];
  Span& verify = part_spans_[Index(StepPart::kVerify)];
  // Two clocks may differ by a little.
  forward.end = verify.begin = std::min(forward.begin + seconds, Now());
}

void StepTrace::SetPlan(const StepPlan& plan) {
  if (!is_on()) return;
  num_preempted_ = plan.num_preempted;
  for (const PlannedRequest& planned : plan.requests) {
    requests_.push_back({.id = planned.request->id,
                         .num_rows = planned.num_rows(),
                         .num_draft = planned.num_draft});
  }
}

void StepTrace::CountCommit(int num_accepted, int num_emitted) noexcept {
  if (!is_on()) return;
  RequestCounts& counts = requests_[num_committed_++];
  counts.num_accepted = num_accepted;
  counts.num_emitted = num_emitted;
}

void StepTrace::EndStep(bool failed) noexcept {
  step_span_.end = Now();
  if (open_span_ != nullptr) open_span_->end = step_span_.end;
  if (!is_on()) return;
  ++num_steps_;
  try {
    Write(StepEvents(failed));
  } catch (...) {
    file_.setstate(std::ios::badbit);  // out of memory: Stop reports it, as it does a full disk
  }
}

std::string StepTrace::StepEvents(bool failed) const {
  int num_rows = 0, num_draft = 0, num_accepted = 0, num_emitted = 0;
  Json requests = Json::array();
  for (const RequestCounts& counts : requests_) {
    num_rows += counts.num_rows;
    num_draft += counts.num_draft;
    num_accepted += counts.num_accepted;
    num_emitted += counts.num_emitted;
    requests.push_back({{"id", counts.id},
                        {"rows", counts.num_rows},
                        {"draft_tokens", counts.num_draft},
                        {"accepted_tokens", counts.num_accepted},
                        {"emitted_tokens", counts.num_emitted}});
  }
  Json of_step = {{"step", num_steps_}};
  if (failed) of_step["failed"] = true;
  of_step["requests"] = std::move(requests);
  Json args[kNumStepParts];
  args[Index(StepPart::kDraft)] = {{"draft_tokens", num_draft}};
  args[Index(StepPart::kPlan)] = {
      {"requests", requests_.size()}, {"rows", num_rows}, {"preempted_requests", num_preempted_}};
  args[Index(StepPart::kForward)] = {{"rows", num_rows}};
  args[Index(StepPart::kVerify)] = {{"draft_tokens", num_draft}, {"accepted_tokens", num_accepted}};
  args[Index(StepPart::kCommit)] = {{"emitted_tokens", num_emitted}};

  const auto event = [this](const char* name, const Span& span, Json event_args) {
    return ",\n" + SpanEvent(name, span.begin - trace_begin_, span.end - trace_begin_,
                             std::move(event_args))
                       .dump();
  };
  std::string events = event("step", step_span_, std::move(of_step));
  for (int part = 0; part < kNumStepParts; ++part) {
    const Span& span = part_spans_[part];
    if (span.begin != 0) events += event(kPartNames[part], span, std::move(args[part]));
  }
  return events;
}

}  // namespace forerun
