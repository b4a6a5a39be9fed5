#include "cpp/engine/draft_planner/draft_planner.h"

#include <algorithm>
#include <new>
#include <ranges>
#include <utility>

#include "cpp/draft/draft_limits.h"
#include "cpp/draft/text/confidence.h"
#include "cpp/util/check.h"
#include "cpp/util/clock.h"
#include "forerun/error.h"

namespace forerun {
namespace {

constexpr std::size_t kMaxMessageBytes = 1000;  // of a failure

// Neither our own bug, nor a lost device, nor a shortage of memory, which must not look like a
// drafter without drafts.
bool IsDraftersOwn(const std::exception& error) {
  const auto* of_device = dynamic_cast<const DeviceError*>(&error);
  return (of_device == nullptr || !of_device->is_lost()) &&
         dynamic_cast<const InternalError*>(&error) == nullptr &&
         dynamic_cast<const std::bad_alloc*>(&error) == nullptr;
}

// Fewer tokens may agree with a prediction by chance: there the drafter may know better.
constexpr int kSureMatch = 3;

// Whether the request's prediction has a draft.
bool HasContinuation(const Request& request) {
  return request.prediction && !request.prediction->continuation().empty();
}

}  // namespace

DraftPlanner::DraftPlanner(const DraftPlannerSetting& setting, Drafter* drafter)
    : setting_(setting), drafter_(drafter) {
  drafting_.reserve(setting.max_num_seqs);
  draft_requests_.reserve(setting.max_num_seqs);
  for_model_.reserve(setting.max_num_seqs);
  candidates_.reserve(setting.max_num_seqs);
  first_failure_.reserve(kMaxMessageBytes);
}

void DraftPlanner::SetUp(Request& request) const {
  const bool wants_drafts = request.params.speculative && setting_.num_speculative_tokens > 0;
  request.has_drafter = wants_drafts && drafter_ != nullptr;
  request.can_speculate = request.has_drafter || request.prediction ||
                          (wants_drafts && request.hooks.constraint != nullptr);
}

void DraftPlanner::Register(const Request& request) {
  if (request.can_speculate) history_.try_emplace(request.id);
}

void DraftPlanner::Begin(Request& request) {
  Guarded(request, [&] { drafter_->Begin({request.id, request.tokens, request.cache_salt}); });
}

void DraftPlanner::Observe(Request& request, std::span<const TokenId> committed,
                           std::span<const int> accepted_nodes) {
  if (!request.can_speculate || committed.empty()) return;
  DraftHistory& history = history_.at(request.id);
  controller_.ObserveVerdict(request.draft, accepted_nodes, history.checked);
  if (request.prediction) {
    const auto output = std::span(request.tokens).subspan(request.num_prompt_tokens);
    request.prediction->Follow(output, static_cast<int>(committed.size()));
  }
  if (!request.has_drafter) return;
  model_policy_.ObserveVerdict(request.draft, accepted_nodes, history);
  Guarded(request, [&] { drafter_->Observe(request.id, committed); });
}

void DraftPlanner::End(Request& request) {
  const bool is_whole = request.finish_reason == FinishReason::kStop ||
                        request.finish_reason == FinishReason::kLength;
  Guarded(request, [&] { is_whole ? drafter_->End(request.id) : drafter_->Forget(request.id); });
  if (const auto found = history_.find(request.id); found != history_.end()) {
    history_.erase(found);
  }
}

void DraftPlanner::Draft(std::span<const std::unique_ptr<Request>> running, StepMasks& masks) {
  FindRequests(running);
  Prepare();
  for (const Drafting& drafting : drafting_) Propose(drafting);
  ConstrainDrafts(masks);
  if (setting_.adaptive) ChooseNodes(running);
  // Slots that were reserved for drafting and that the draft does not need.
  for (const Drafting& drafting : drafting_) {
    drafting.request->table.Trim(1 + drafting.request->draft.size());
  }
}

void DraftPlanner::FindRequests(std::span<const std::unique_ptr<Request>> running) {
  drafting_.clear();
  draft_requests_.clear();
  const int most_drafted = setting_.num_speculative_tokens;
  const int most_predicted = std::max(most_drafted, PredictedTokensOfEach(running));
  for (const auto& request : running) {
    if (!request->can_speculate || request->num_pending() != 1) continue;
    const int cap = std::min(request->params.max_draft_tokens.value_or(most_predicted),
                             request->num_draftable());
    const bool is_predicted = HasContinuation(*request);
    const int max_tokens = std::min(cap, is_predicted ? most_predicted : most_drafted);
    if (max_tokens <= 0) continue;
    drafting_.push_back({request.get(), &history_.at(request->id), max_tokens});
    if (is_predicted && request->prediction->match_len() >= kSureMatch) continue;
    const int num_by_drafter = std::min(cap, most_drafted);
    if (request->has_drafter && num_by_drafter > 0) {
      AddDraftRequest(num_by_drafter, drafting_.back());
    }
  }
  // The prompt of another request makes the step longer, but a token no more expensive.
  ChooseForModel(static_cast<int>(std::ranges::count_if(
      running, [](const auto& request) { return request->num_pending() == 1; })));
}

int DraftPlanner::PredictedTokensOfEach(std::span<const std::unique_ptr<Request>> running) {
  const auto num_predicted = static_cast<int>(std::ranges::count_if(
      running, [](const auto& request) { return HasContinuation(*request); }));
  return kPredictedTokens / std::max(num_predicted, 1);
}

void DraftPlanner::AddDraftRequest(int max_tokens, Drafting& drafting) {
  Request& request = *drafting.request;
  drafting.index = static_cast<int>(draft_requests_.size());
  draft_requests_.push_back({request.id, max_tokens, request.rule, request.num_output_tokens(),
                             request.tokens, &request.table});
  const std::optional<ModelWork> work = drafter_->EstimateModelWork(draft_requests_.back());
  drafting.runs_model = work.has_value();
  if (!work) return;
  drafting.num_catch_up_tokens = work->num_catch_up_tokens;
  drafting.num_slots = work->num_slots;
}

void DraftPlanner::ChooseForModel(int num_rows) {
  for_model_.clear();
  for (const Drafting& drafting : drafting_) {
    if (!drafting.runs_model) continue;
    for_model_.push_back(
        {drafting.history, drafting.num_catch_up_tokens, drafting.request->num_draftable()});
  }
  if (for_model_.empty()) return;
  // Without a step to compare with, a draft could cost any number of them.
  const bool decides = setting_.adaptive;
  if (decides && cost_.known()) model_policy_.Choose(num_rows, for_model_);
  auto candidate = for_model_.begin();
  for (const Drafting& drafting : drafting_) {
    if (!drafting.runs_model) continue;
    DraftRequest& wanted = draft_requests_[drafting.index];
    if (decides) {
      wanted.least_path_probability = model_policy_.least_path_probability();
      wanted.may_run_model = candidate->runs;
    }
    ++candidate;
    // Where blocks are short, the requests that are served first draft.
    if (wanted.may_run_model && drafting.num_slots > 0) {
      wanted.may_run_model = drafting.request->table.Reserve(drafting.num_slots);
    }
  }
}

void DraftPlanner::Prepare() {
  report_ = {};
  if (draft_requests_.empty()) return;
  try {
    const double begin = Now();
    report_ = drafter_->Prepare(draft_requests_);
    ObserveDrafting(report_, Now() - begin);
  } catch (const std::exception& error) {
    if (!IsDraftersOwn(error)) throw;
    // The failure cannot be attributed to one request: all lose their drafter.
    for (const Drafting& drafting : drafting_) {
      if (drafting.index >= 0) DropDrafter(*drafting.request, error.what());
    }
  }
}

void DraftPlanner::ObserveDrafting(const DraftingReport& report, double seconds) {
  int num_run = 0, num_free = 0;
  bool catches_up = false;
  for (const Drafting& drafting : drafting_) {
    if (report.requests.empty() || drafting.index < 0) continue;
    if (!report.requests[drafting.index].ran_model) continue;
    ++num_run;
    const bool is_free = drafting.num_catch_up_tokens <= CostModel::kFreeCatchUpTokens;
    catches_up = catches_up || !is_free;
    if (is_free) num_free += drafting.num_catch_up_tokens;
  }
  // The report's count, since a prefix that requests share is computed once.
  const int num_catch_up = catches_up ? std::max(0, report.num_catch_up_tokens - num_free) : 0;
  cost_.ObserveDrafting(num_run, report.num_forwards, num_catch_up, seconds);
}

void DraftPlanner::Propose(const Drafting& drafting) {
  Request& request = *drafting.request;
  drafting.history->ran_model = false;
  drafting.history->draft_without_model = nullptr;
  request.is_predicted = false;
  if (request.has_drafter && drafting.index >= 0) CallDrafter(drafting);
  if (request.draft.empty() && HasContinuation(request)) {
    ProposePredicted(drafting.max_tokens, request);
  }
  FORERUN_CHECK(request.draft.size() <= drafting.max_tokens, "the drafter exceeded its limit");
  FORERUN_CHECK(request.draft.is_tree(), "a draft's node comes before its parent");
}

void DraftPlanner::CallDrafter(const Drafting& drafting) {
  Request& request = *drafting.request;
  DraftHistory& history = *drafting.history;
  try {
    drafter_->Propose(draft_requests_[drafting.index], request.draft);
  } catch (const std::exception& error) {
    if (!IsDraftersOwn(error)) throw;
    return DropDrafter(request, error.what());
  }
  if (!report_.requests.empty()) {
    const DraftingReport::OfRequest& report = report_.requests[drafting.index];
    history.ran_model = report.ran_model;
    history.draft_without_model = report.draft_without_model;
  }
}

void DraftPlanner::ProposePredicted(int max_tokens, Request& request) {
  request.is_predicted = true;
  int match_len = request.prediction->match_len();
  for (const TokenId token : request.prediction->continuation() | std::views::take(max_tokens)) {
    request.draft.AppendToChain(token, CountConfidence(1, 1, match_len));
    match_len = std::min(match_len + 1, PredictedOutput::kMaxMatch);
  }
}

void DraftPlanner::ConstrainDrafts(StepMasks& masks) {
  for (const Drafting& drafting : drafting_) {
    Request& request = *drafting.request;
    if (!request.constraint || request.draft.has_draft_probabilities()) continue;
    masks.Open(request.hooks.constraint->batch());
    try {
      constrainer_.Constrain(*request.constraint, drafting.max_tokens, request.draft);
    } catch (const HookError&) {
      request.draft.Clear();  // the verification asks again, and fails the request
    }
  }
}

void DraftPlanner::ChooseNodes(std::span<const std::unique_ptr<Request>> running) {
  candidates_.clear();
  for (const Drafting& drafting : drafting_) {
    DraftTree& draft = drafting.request->draft;
    // How much of a sampled draft is kept must not depend on what was sampled.
    if (draft.empty() || draft.has_draft_probabilities()) continue;
    candidates_.push_back({&draft, &drafting.history->checked});
  }
  if (candidates_.empty()) return;
  int num_known_rows = 0;
  for (const auto& request : running) num_known_rows += request->num_pending();
  controller_.Choose(cost_, candidates_, std::min(num_known_rows, setting_.max_num_batched_tokens),
                     static_cast<int>(running.size()));
}

void DraftPlanner::ObserveStep(const StepPlan& plan, double model_seconds) {
  const bool decodes_only = std::ranges::all_of(
      plan.requests, [](const PlannedRequest& planned) { return planned.num_pending == 1; });
  if (decodes_only) cost_.ObserveStep(plan.num_rows, model_seconds);
}

template <typename Call>
void DraftPlanner::Guarded(Request& request, const Call& call) {
  if (!request.has_drafter) return;
  try {
    call();
  } catch (const std::exception& error) {
    if (!IsDraftersOwn(error) && kept_back_ == nullptr) kept_back_ = std::current_exception();
    DropDrafter(request, error.what());
  }
}

void DraftPlanner::DropDrafter(Request& request, std::string_view reason) {
  if (!request.has_drafter) return;
  request.has_drafter = false;
  request.draft.Clear();
  // Within its capacity: nothing may fail here.
  if (num_failures_++ == 0) first_failure_ = reason.substr(0, first_failure_.capacity());
  try {
    drafter_->Forget(request.id);
  } catch (const std::exception&) {
    // It failed before it knew the request, or in the middle of Forget: there is nothing to undo.
  }
}

void DraftPlanner::RethrowFailure() {
  if (kept_back_ != nullptr) std::rethrow_exception(std::exchange(kept_back_, nullptr));
}

void DraftPlanner::Reset() {
  if (drafter_ != nullptr) drafter_->Reset();
}

bool DraftPlanner::Restore(std::span<const PastOutput> outputs, bool is_last) {
  return drafter_ != nullptr && drafter_->Restore(outputs, is_last);
}

}  // namespace forerun
