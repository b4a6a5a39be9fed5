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
// Of the time that goes by without drafts: what trials may cost at most.
constexpr double kTrialShare = 0.01;

void Count(double decay, int num_rows, int num_accepted, ModelYield& yield) {
  yield.num_drafts = decay * yield.num_drafts + 1;
  yield.num_accepted = decay * yield.num_accepted + num_accepted;
  yield.num_rows = decay * yield.num_rows + num_rows;
}

}  // namespace

ModelPolicy::ModelPolicy(const CostModel& cost, int max_draft_tokens) : cost_(cost) {
  nodes_without_model_.reserve(max_draft_tokens);
}

void ModelPolicy::ObserveVerdict(const DraftTree& draft, std::span<const int> accepted_nodes,
                                 DraftHistory& history) {
  if (!std::exchange(history.ran_model, false)) return;
  const Added added = CountAdded(draft, accepted_nodes, history.draft_without_model);
  history.trial_seconds = 0;
  history.num_first_left = std::max(0, history.num_first_left - 1);
  Count(kRequestModelDecay, added.num_nodes, added.num_accepted, history.model);
  Count(kSharedModelDecay, added.num_nodes, added.num_accepted, all_);
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

bool ModelPolicy::ShouldRun(double seconds_per_token, int num_catch_up_tokens, int num_tokens_left,
                            DraftHistory& history) {
  const double weight = kSharedWeight / all_.num_drafts;
  const double num_drafts = history.model.num_drafts + kSharedWeight;
  const double accepted = (history.model.num_accepted + weight * all_.num_accepted) / num_drafts;
  const double rows = (history.model.num_rows + weight * all_.num_rows) / num_drafts;
  const double draft_seconds = cost_.draft_seconds() + rows * cost_.seconds_per_row();
  const double saved_seconds = accepted * seconds_per_token - draft_seconds;
  const double num_drafts_left =
      std::min(kShareOfTokensLeft * num_tokens_left, kMaxTokensAhead) / (1 + accepted);
  const double catch_up_seconds = cost_.CatchUpSeconds(num_catch_up_tokens);
  if (history.num_first_left > 0 && catch_up_seconds < seconds_per_token) return true;
  if (saved_seconds >= 0 && saved_seconds * num_drafts_left >= catch_up_seconds) return true;
  history.trial_seconds += kTrialShare * seconds_per_token;
  history.trial_seconds += std::exchange(unused_trial_seconds_, 0.0);
  if (history.trial_seconds >= draft_seconds + catch_up_seconds) return true;
  history.model.num_drafts *= kSkipDecay;
  history.model.num_accepted *= kSkipDecay;
  history.model.num_rows *= kSkipDecay;
  return false;
}

double ModelPolicy::LeastPathProbability(double seconds_per_token) const {
  if (seconds_per_token <= 0) return 0;
  return (cost_.seconds_per_row() + cost_.draft_forward_seconds()) / seconds_per_token;
}

}  // namespace forerun
