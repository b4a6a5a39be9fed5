#include "cpp/sched/scheduler.h"

#include <algorithm>
#include <utility>

#include "cpp/sched/policy.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// Takes ownership of the request, unless it throws.
template <typename Requests>
void Insert(std::unique_ptr<Request>&& request, Requests& requests) {
  requests.push_back(std::move(request));
  const auto last = requests.end() - 1;
  const auto comes_before = [](const auto& a, const auto& b) { return a->ComesBefore(*b); };
  std::rotate(std::upper_bound(requests.begin(), last, *last, comes_before), last, requests.end());
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, BlockPool& pool)
    : limits_(limits), pool_(pool) {
  FORERUN_CHECK(limits.max_num_seqs >= 1 && limits.max_num_batched_tokens >= limits.max_num_seqs);
  running_.reserve(limits.max_num_seqs);
}

void Scheduler::Add(std::unique_ptr<Request>&& request) { Insert(std::move(request), waiting_); }

Request* Scheduler::Find(RequestId id) const {
  for (const auto& request : running_) {
    if (request->id == id) return request.get();
  }
  for (const auto& request : waiting_) {
    if (request->id == id) return request.get();
  }
  return nullptr;
}

std::unique_ptr<Request> Scheduler::Remove(Request* request) {
  const auto is_it = [request](const std::unique_ptr<Request>& held) {
    return held.get() == request;
  };
  std::unique_ptr<Request> removed;
  if (auto it = std::ranges::find_if(running_, is_it); it != running_.end()) {
    removed = std::move(*it);
    running_.erase(it);
  } else if (auto waiting = std::ranges::find_if(waiting_, is_it); waiting != waiting_.end()) {
    removed = std::move(*waiting);
    waiting_.erase(waiting);
  }
  FORERUN_CHECK(removed != nullptr, "the request is not scheduled here");
  removed->table.Drop();
  return removed;
}

void Scheduler::Plan(StepPlan& plan) {
  plan.Clear();
  plan.requests.reserve(limits_.max_num_seqs);
  int budget = limits_.max_num_batched_tokens;
  // running_ shrinks from its end while this loop preempts.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Request& request = *running_[i];
    const int num_later = static_cast<int>(running_.size() - i) - 1;
    const RowGrant grant =
        GrantRows(NumPendingWithin(request, plan), request.draft.size(), budget, num_later);
    PlannedRequest planned{&request, grant.num_pending, grant.num_draft,
                           grant.num_pending == request.num_pending()};
    if (!ReserveRows(request, planned, plan)) break;
    budget -= planned.num_rows();
    AddToPlan(planned, plan);
  }
  if (plan.num_preempted == 0) Admit(budget, plan);
}

bool Scheduler::ReserveRows(Request& request, PlannedRequest& planned, StepPlan& plan) {
  while (!request.table.Reserve(planned.num_rows())) {
    if (planned.num_draft > 0) {
      planned.num_draft = 0;
      continue;
    }
    const bool is_last = running_.back().get() == &request;
    FORERUN_CHECK(running_.size() > 1, "a request that runs alone must fit");
    PreemptLast(plan);
    if (is_last) return false;
  }
  return true;
}

void Scheduler::PreemptLast(StepPlan& plan) {
  Request& victim = *running_.back();
  Insert(std::move(running_.back()), waiting_);
  running_.pop_back();
  victim.table.Drop();
  victim.draft.Clear();
  ++victim.metrics.num_preemptions;
  ++num_preemptions_;
  ++plan.num_preempted;
}

void Scheduler::Admit(int budget, StepPlan& plan) {
  while (!waiting_.empty()) {
    Request& request = *waiting_.front();
    if (static_cast<int>(running_.size()) >= limits_.max_num_seqs || budget <= 0) return;
    request.Prepare();
    // Logits are not cached.
    const int num_adopted = request.scores_prompt() ? 0 : request.table.AdoptPrefix(request.tokens);
    const int num_blocks = request.table.NumBlocksToReserve(request.num_pending());
    if (NextBlockIsBeingComputed(request) ||
        !MayAdmit({static_cast<int>(running_.size()), limits_.max_num_seqs, budget, num_blocks,
                   pool_.num_available()})) {
      request.table.Drop();
      return;
    }
    const RowGrant grant = GrantRows(NumPendingWithin(request, plan), 0, budget, 0);
    FORERUN_CHECK(request.table.Reserve(grant.num_pending), "admission counted its blocks");
    if (request.num_cached_tokens < 0) request.num_cached_tokens = num_adopted;
    budget -= grant.num_pending;
    AddToPlan({&request, grant.num_pending, 0, grant.num_pending == request.num_pending()}, plan);
    Insert(std::move(waiting_.front()), running_);
    waiting_.pop_front();
  }
}

// Between AdoptPrefix and Reserve.
bool Scheduler::NextBlockIsBeingComputed(const Request& candidate) const {
  if (!pool_.prefix_caching() || candidate.scores_prompt()) return false;
  const std::size_t end = candidate.table.num_committed() + pool_.block_size();
  if (candidate.tokens.size() <= end) return false;
  return std::ranges::any_of(running_, [&](const std::unique_ptr<Request>& request) {
    return request->tokens.size() >= end &&
           static_cast<std::size_t>(request->table.num_committed()) < end &&
           request->table.root() == candidate.table.root() &&
           std::equal(candidate.tokens.begin(), candidate.tokens.begin() + end,
                      request->tokens.begin());
  });
}

// The known tokens that the step may compute.
int Scheduler::NumPendingWithin(const Request& request, const StepPlan& plan) const {
  if (!request.scores_prompt()) return request.num_pending();
  return std::clamp(limits_.max_scored_rows - plan.num_scored_rows, 1, request.num_pending());
}

void Scheduler::AddToPlan(PlannedRequest planned, StepPlan& plan) {
  planned.num_scored = planned.request->num_rows_to_score(planned.num_pending);
  plan.num_rows += planned.num_rows();
  plan.num_scored_rows += planned.num_scored;
  plan.requests.push_back(planned);
}

void Scheduler::Abandon() {
  for (const auto& request : running_) {
    request->table.Trim(0);
    request->draft.Clear();
  }
}

}  // namespace forerun
