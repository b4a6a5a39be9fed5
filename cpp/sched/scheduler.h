// Decides what each step runs, and owns every unfinished request.
//
// Requests are served by priority, lower values first, and by arrival among equals. Every running
// request gets at least one row; then waiting requests are admitted. A waiting request whose next
// block a running one is about to compute waits and then finds it in the prefix cache, so that a
// common prefix is computed once. When blocks run out, a draft is dropped first; then the last
// running request in this order is preempted: its blocks are freed, and it is computed again later.
// The first running request can always run, because no request may need more blocks than there are.
//
// Not thread-safe. The pool must outlive the scheduler.
#ifndef FORERUN_CPP_SCHED_SCHEDULER_H_
#define FORERUN_CPP_SCHED_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "cpp/kv/block_pool.h"
#include "cpp/sched/request.h"
#include "cpp/sched/step_plan.h"

namespace forerun {

struct SchedulerLimits {
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;  // >= max_num_seqs
  // Rows of prompts with prompt_logprobs, which need a row of logits each. A request gets at least
  // one row, regardless of the limit.
  int max_scored_rows = 224;
};

class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, BlockPool& pool);

  // Takes ownership of the request, unless it throws.
  void Add(std::unique_ptr<Request>&& request);

  // Null when the id is unknown.
  Request* Find(RequestId id) const;

  // Removes a running or waiting request and frees its blocks.
  std::unique_ptr<Request> Remove(Request* request);

  // running and waiting: both in the order above.
  std::size_t num_requests() const { return running_.size() + waiting_.size(); }
  std::span<const std::unique_ptr<Request>> running() const { return running_; }
  const std::deque<std::unique_ptr<Request>>& waiting() const { return waiting_; }
  bool empty() const { return running_.empty() && waiting_.empty(); }
  std::int64_t num_preemptions() const { return num_preemptions_; }

  // Fills the plan and reserves its blocks. Of each request's draft the plan may use only the first
  // nodes. Admission and preemption happen here and are kept, whether or not the step succeeds.
  void Plan(StepPlan& plan);

  // After a step that failed before its commit: gives back what was reserved for running requests,
  // and drops their drafts.
  void Abandon();

 private:
  // False: the request itself had to be preempted.
  bool ReserveRows(Request& request, PlannedRequest& planned, StepPlan& plan);
  void PreemptLast(StepPlan& plan);
  void Admit(int budget, StepPlan& plan);
  bool NextBlockIsBeingComputed(const Request& candidate) const;
  int NumPendingWithin(const Request& request, const StepPlan& plan) const;
  void AddToPlan(PlannedRequest planned, StepPlan& plan);

  const SchedulerLimits limits_;
  BlockPool& pool_;
  std::vector<std::unique_ptr<Request>> running_;
  std::deque<std::unique_ptr<Request>> waiting_;
  std::int64_t num_preemptions_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_SCHED_SCHEDULER_H_
