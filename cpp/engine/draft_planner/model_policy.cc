#include "cpp/engine/draft_planner/model_policy.h"

#include <algorithm>
#include <utility>

namespace forerun {
namespace {

// A request is remembered over its last 50 or so drafts: about a paragraph of text.
constexpr double kRequestModelDecay = 0.98;
// Drafts of all requests come faster, and what they say should follow the load.
constexpr double kSharedModelDecay = 0.97;
// Per step without a draft: after some 200 of them the text may have become another.
constexpr double kSkipDecay = 0.995;

// The drafts of all requests weigh as much as this many of the request's own: two or three steps
// are chance, ten are not.
constexpr double kSharedWeight = 8;
// The end of a text is unknown: on average half of max_tokens is used, and beyond this many tokens
// the estimate of what drafts yield is too old to count on.
constexpr double kShareOfTokensLeft = 0.5;
constexpr double kMaxTokensAhead = 256;
// Rows of a draft, for what one more costs.
constexpr double kUsualRows = 4;

// A step without a draft by the model.
void Forget(DraftHistory& history) {
  ++history.num_skipped;
  history.model.num_drafts *= kSkipDecay;
  history.model.num_accepted *= kSkipDecay;
  history.model.num_rows *= kSkipDecay;
}

void Count(double decay, int num_rows, int num_accepted, ModelYield& yield) {
  yield.num_drafts = decay * yield.num_drafts + 1;
  yield.num_accepted = decay * yield.num_accepted + num_accepted;
  yield.num_rows = decay * yield.num_rows + num_rows;
}

}  // namespace

ModelPolicy::ModelPolicy(const CostModel& cost, int max_draft_tokens, int max_candidates)
    : cost_(cost) {
  nodes_without_model_.reserve(max_draft_tokens);
  order_.reserve(max_candidates);
}

void ModelPolicy::ObserveVerdict(const DraftTree& draft, std::span<const int> accepted_nodes,
                                 DraftHistory& history) {
  if (!std::exchange(history.ran_model, false)) return;
  const Added added = CountAdded(draft, accepted_nodes, history.draft_without_model);
  Count(kRequestModelDecay, added.num_nodes, added.num_accepted, history.model);
  Count(kSharedModelDecay, added.num_nodes, added.num_accepted, all_);
  account_.Add(added.num_accepted * history.seconds_per_token - history.draft_seconds -
               added.num_nodes * row_seconds_);
  account_.Invest(history.catch_up_seconds);
}

ModelPolicy::Added ModelPolicy::CountAdded(const DraftTree& draft,
                                           std::span<const int> accepted_nodes,
                                           const DraftTree* draft_without_model) {
  Added added = {draft.size(), static_cast<int>(accepted_nodes.size())};
  if (draft_without_model == nullptr) return added;
  nodes_without_model_.clear();
  for (int i = 0; i < draft.size(); ++i) {
    const int parent = draft.parents[i];
    const int same = parent == kDraftRoot ? kDraftRoot : nodes_without_model_[parent];
    nodes_without_model_.push_back(
        same == kNoNode ? kNoNode : draft_without_model->Child(same, draft.tokens[i]));
    if (nodes_without_model_.back() == kNoNode) continue;
    --added.num_nodes;
    if (std::ranges::find(accepted_nodes, i) != accepted_nodes.end()) --added.num_accepted;
  }
  return added;
}

ModelPolicy::Yield ModelPolicy::YieldOf(const DraftHistory& history) const {
  const double weight = kSharedWeight / all_.num_drafts;
  const double num_drafts = history.model.num_drafts + kSharedWeight;
  return {(history.model.num_accepted + weight * all_.num_accepted) / num_drafts,
          (history.model.num_rows + weight * all_.num_rows) / num_drafts};
}

double ModelPolicy::ValueOf(const Candidate& candidate, double seconds_per_token) const {
  const double accepted = YieldOf(*candidate.history).accepted;
  const double num_drafts_left =
      std::min(kShareOfTokensLeft * candidate.num_tokens_left, kMaxTokensAhead) / (1 + accepted);
  const double catch_up_seconds = cost_.CatchUpSeconds(candidate.num_catch_up_tokens);
  return accepted * seconds_per_token - catch_up_seconds / std::max(num_drafts_left, 1.0);
}

int ModelPolicy::FindBest(int num_rows) const {
  int num_best = 0;
  double most_saved = 0, value = 0, rows = 0;
  for (int n = 1; n <= static_cast<int>(order_.size()); ++n) {
    const Candidate& candidate = *order_[n - 1];
    value += candidate.value;
    rows += YieldOf(*candidate.history).rows;
    const double saved = value - cost_.RowSeconds(num_rows, rows) - cost_.DraftSeconds(n);
    if (saved > most_saved) {
      most_saved = saved;
      num_best = n;
    }
  }
  // One draft tells what they take.
  return cost_.knows_drafting() ? num_best : std::min(num_best, 1);
}

int ModelPolicy::ChooseAffordable(int num_wanted) {
  if (!account_.in_credit()) return 0;
  double planned_seconds = 0;
  int num_affordable = 0;
  for (int n = 0; n < num_wanted; ++n) {
    const double catch_up_seconds = cost_.CatchUpSeconds(order_[n]->num_catch_up_tokens);
    if (catch_up_seconds > 0 && !account_.MayInvest(planned_seconds)) continue;
    planned_seconds += catch_up_seconds;
    std::swap(order_[num_affordable++], order_[n]);
  }
  return num_affordable;
}

bool ModelPolicy::Try(int num_rows, int num_chosen) {
  const double seconds_before = num_chosen > 0 ? cost_.DraftSeconds(num_chosen) : 0.0;
  const double draft_seconds = cost_.DraftSeconds(num_chosen + 1) - seconds_before;
  const auto others = std::span(order_).subspan(num_chosen);
  const auto cost_of = [&](const Candidate& candidate) {
    return draft_seconds + cost_.CatchUpSeconds(candidate.num_catch_up_tokens) +
           cost_.RowSeconds(num_rows, YieldOf(*candidate.history).rows);
  };
  Candidate** longest = nullptr;
  for (Candidate*& candidate : others) {
    if (cost_of(*candidate) > trial_seconds_) continue;
    if (longest != nullptr && candidate->history->num_skipped <= (*longest)->history->num_skipped) {
      continue;
    }
    longest = &candidate;
  }
  if (longest == nullptr) return false;
  trial_seconds_ -= cost_of(**longest);
  std::swap(*longest, others.front());
  return true;
}

void ModelPolicy::Choose(int num_rows, std::span<Candidate> candidates) {
  const double step_seconds = cost_.StepSeconds(num_rows);
  const double seconds_per_token = step_seconds / num_rows;
  account_.BeginStep(num_rows, step_seconds);
  order_.clear();
  for (Candidate& candidate : candidates) {
    candidate.runs = false;
    candidate.value = ValueOf(candidate, seconds_per_token);
    order_.push_back(&candidate);
  }
  std::ranges::sort(order_, [](const Candidate* a, const Candidate* b) {
    return a->value != b->value ? a->value > b->value : a < b;  // those that are served first
  });
  int num_chosen = ChooseAffordable(FindBest(num_rows));
  const auto num_others = static_cast<double>(order_.size() - num_chosen);
  trial_seconds_ += TimeAccount::kShare * step_seconds * num_others / num_rows;
  if (num_others > 0 && Try(num_rows, num_chosen)) ++num_chosen;
  const int num_running = std::max(num_chosen, 1);
  const double draft_seconds = cost_.DraftSeconds(num_running) / num_running;
  for (int i = 0; i < static_cast<int>(order_.size()); ++i) {
    Candidate& candidate = *order_[i];
    DraftHistory& history = *candidate.history;
    if (i >= num_chosen) {
      Forget(history);
      continue;
    }
    candidate.runs = true;
    history.num_skipped = 0;
    history.seconds_per_token = seconds_per_token;
    history.draft_seconds = draft_seconds;
    history.catch_up_seconds = cost_.CatchUpSeconds(candidate.num_catch_up_tokens);
  }
  row_seconds_ = cost_.RowSeconds(num_rows, kUsualRows * num_running) / (kUsualRows * num_running);
  const double node_seconds = row_seconds_ + cost_.DraftPassSeconds(num_running) / num_running;
  least_path_probability_ = seconds_per_token > 0 ? node_seconds / seconds_per_token : 0.0;
}

}  // namespace forerun
