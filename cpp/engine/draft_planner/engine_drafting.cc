// The first move of a step: who drafts, and what.
#include <algorithm>
#include <stdexcept>

#include "cpp/engine/engine_core.h"
#include "cpp/util/check.h"
#include "cpp/util/clock.h"

namespace forerun {

void EngineCore::ProposeDrafts() {
  candidates_.clear();
  FindDraftRequests();
  if (drafter_ != nullptr) PrepareDrafts();
  for (std::size_t i = 0; i < drafting_.size(); ++i) {
    Request& request = *drafting_[i];
    ProposeDraft(wanted_[i], request);
    // What a sampled draft drew must not decide how much of it is kept.
    if (request.draft.empty() || request.draft.is_sampled()) continue;
    candidates_.push_back({&request.draft, &history_[request.id].acceptance});
  }
  if (config_.adaptive && !candidates_.empty()) {
    int num_known_rows = 0;
    for (const auto& request : scheduler_.running()) num_known_rows += request->num_pending();
    controller_.Choose(candidates_, std::min(num_known_rows, config_.max_num_batched_tokens),
                       static_cast<int>(scheduler_.running().size()));
  }
  // Room that drafting took and the draft does not need.
  for (Request* request : drafting_) request->table.Trim(1 + request->draft.size());
}

void EngineCore::FindDraftRequests() {
  drafting_.clear();
  wanted_.clear();
  const std::optional<DraftPrice::StepCost> cost = PriceOfStep();
  const double least_path_probability = cost ? price_.LeastPathProbability(*cost) : 0.0;
  for (const auto& request : scheduler_.running()) {
    request->draft.Clear();  // of a step that was interrupted
    if (!request->speculates || request->num_pending() != 1) continue;
    const int cap = request->params.max_draft_tokens.value_or(config_.num_speculative_tokens);
    const int limit = std::min({config_.num_speculative_tokens, cap, request->num_draftable()});
    if (limit <= 0) continue;
    drafting_.push_back(request.get());
    wanted_.push_back({request->id, limit, request->rule, request->num_output_tokens(),
                       request->tokens, &request->table, least_path_probability});
    DraftRequest& wanted = wanted_.back();
    if (!request->drafts) {
      wanted.may_run_model = false;
      continue;
    }
    wanted.num_rows_behind = drafter_->NumRowsBehind(wanted);
    wanted.may_run_model =
        !cost || price_.Pays(*cost, wanted.num_rows_behind, request->num_draftable(),
                             history_[request->id].price);
  }
}

std::optional<DraftPrice::StepCost> EngineCore::PriceOfStep() const {
  const bool is_known = drafter_ != nullptr && drafter_->is_model() && controller_.cost().known();
  if (!config_.adaptive || !is_known || scheduler_.running().empty()) return {};
  // A neighbour's prompt makes the step longer, not the token dearer.
  const auto num_decoding = static_cast<int>(std::ranges::count_if(
      scheduler_.running(), [](const auto& request) { return request->num_pending() == 1; }));
  if (num_decoding == 0) return {};
  const StepCostModel& cost = controller_.cost();
  return DraftPrice::StepCost{cost.Seconds(num_decoding) / num_decoding, cost.seconds_per_row()};
}

void EngineCore::PrepareDrafts() {
  prepared_.clear();
  for (std::size_t i = 0; i < drafting_.size(); ++i) {
    Request& request = *drafting_[i];
    if (!request.drafts) continue;
    prepared_.push_back(wanted_[i]);
    const int num_slots = drafter_->num_draft_slots(wanted_[i].max_tokens);
    // Where blocks are short, whoever comes first drafts.
    bool& may_run_model = prepared_.back().may_run_model;
    if (num_slots > 0 && may_run_model) may_run_model = request.table.Reserve(num_slots);
  }
  if (prepared_.empty()) return;
  try {
    const double begin = Now();
    drafter_->Prepare(prepared_);
    const double seconds = Now() - begin;
    int num_run = 0, num_few = 0;
    bool catches_up = false;
    for (const DraftRequest& wanted : prepared_) {
      if (!drafter_->RanModel(wanted.id)) continue;
      ++num_run;
      const bool is_far_behind = wanted.num_rows_behind > DraftPrice::kFewRows;
      catches_up = catches_up || is_far_behind;
      if (!is_far_behind) num_few += wanted.num_rows_behind;
    }
    // What requests share was run once.
    const int num_rows_behind = catches_up ? std::max(0, drafter_->num_caught_up() - num_few) : 0;
    price_.ObserveDrafting(num_run, drafter_->num_forwards(), num_rows_behind, seconds);
  } catch (const std::exception&) {
    // It cannot be told whose fault it was.
    for (std::size_t i = 0; i < drafting_.size(); ++i) {
      Guarded(*drafting_[i], [] { throw std::runtime_error("drafting failed"); });
    }
  }
}

void EngineCore::ProposeDraft(const DraftRequest& wanted, Request& request) {
  const int max_tokens = wanted.max_tokens;
  Guarded(request, [&] {
    drafter_->Propose(wanted, request.draft);
    history_[request.id].price.was_asked = drafter_->RanModel(request.id);
  });
  FORERUN_CHECK(request.draft.size() <= max_tokens, "the drafter went beyond its limit");
  FORERUN_CHECK(request.draft.is_tree(), "a draft's node comes before its parent");
  if (!request.constraint || request.draft.is_sampled()) return;
  try {
    constrainer_.Constrain(*request.constraint, max_tokens, request.draft);
  } catch (const HookError&) {
    request.draft.Clear();  // the verification asks again, and fails the request
  }
}

}  // namespace forerun
