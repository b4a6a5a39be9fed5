#include "cpp/engine/draft_planner/draft_length.h"

#include <algorithm>
#include <cmath>

namespace forerun {
namespace {

// A level of confidence is remembered over its last 500 or so nodes. Forgetting makes hopeless
// drafts be tried again now and then; kConfidenceWeight * (1 - kSharedDecay) bounds what that
// costs, here to about one percent of the time.
constexpr double kSharedDecay = 0.998;
// A request is remembered over its last 30 or so steps: texts change faster than drafters.
constexpr double kRequestDecay = 0.97;

// A drafter's stated confidence weighs as much as this many checked nodes: a few dozen observations
// should overrule it.
constexpr double kConfidenceWeight = 4;
// A request counts as average until it has shown more than a node or two.
constexpr double kRequestWeight = 2;

// What a draft must be expected to gain: less is lost to errors of the estimates, and to requests
// of a batch that end at different times.
constexpr double kLeastGain = 1.02;

// Nothing is sure enough to draft without end.
constexpr double kMaxProbability = 0.99;

}  // namespace

AcceptanceModel::AcceptanceModel() {
  for (int level = 0; level < kNumLevels; ++level) levels_[level] = {0, 0};
}

int AcceptanceModel::LevelOf(float confidence) {
  return std::clamp(static_cast<int>(confidence * kNumLevels), 0, kNumLevels - 1);
}

double AcceptanceModel::SharedRate(float confidence) const {
  const Level& level = levels_[LevelOf(confidence)];
  return (level.num_accepted + kConfidenceWeight * confidence) /
         (level.num_checked + kConfidenceWeight);
}

double AcceptanceModel::Probability(float confidence, const CheckedNodes& checked) const {
  if (confidence >= 1.0f) return kMaxProbability;
  const double ratio =
      (checked.num_accepted + kRequestWeight) / (checked.num_expected + kRequestWeight);
  return std::clamp(SharedRate(confidence) * ratio, 0.0, kMaxProbability);
}

void AcceptanceModel::Observe(float confidence, bool accepted, CheckedNodes& checked) {
  if (confidence >= 1.0f) return;
  checked.num_expected += SharedRate(confidence);
  checked.num_accepted += accepted ? 1 : 0;
  Level& level = levels_[LevelOf(confidence)];
  level.num_checked = kSharedDecay * level.num_checked + 1;
  level.num_accepted = kSharedDecay * level.num_accepted + (accepted ? 1 : 0);
}

void AcceptanceModel::Age(CheckedNodes& checked) {
  checked.num_expected *= kRequestDecay;
  checked.num_accepted *= kRequestDecay;
}

void DraftLengthController::Choose(const CostModel& cost, std::span<const Candidate> candidates,
                                   int num_known_rows, int num_emitting) {
  if (!cost.known() || num_emitting == 0) return;
  account_.BeginStep(num_emitting, cost.StepSeconds(num_known_rows));
  nodes_.clear();
  for (int c = 0; c < static_cast<int>(candidates.size()); ++c) {
    const DraftTree& draft = *candidates[c].draft;
    const int begin = static_cast<int>(nodes_.size());
    for (int i = 0; i < draft.size(); ++i) {
      const int parent = draft.parents[i];
      const double above = parent == kDraftRoot ? 1.0 : nodes_[begin + parent].path_probability;
      const float confidence = draft.confidence[i];
      // Out of credit, only what is certain is drafted, such as forced tokens.
      const double probability = account_.in_credit() || confidence >= 1.0f
                                     ? acceptance_.Probability(confidence, *candidates[c].checked)
                                     : 0.0;
      nodes_.push_back({above * probability, c, i});
    }
  }
  // Down a path the probability never grows, so the best n nodes are closed under parents.
  std::ranges::sort(nodes_, [](const Node& a, const Node& b) {
    if (a.path_probability != b.path_probability) return a.path_probability > b.path_probability;
    if (a.index != b.index) return a.index < b.index;
    return a.candidate < b.candidate;
  });
  int num_best = 0;
  double tokens = num_emitting;
  // More rows never take less time, even where measurements say so.
  double seconds = cost.StepSeconds(num_known_rows);
  double best_rate = kLeastGain * tokens / seconds;
  for (int n = 1; n <= static_cast<int>(nodes_.size()); ++n) {
    tokens += nodes_[n - 1].path_probability;
    seconds = std::max(seconds, cost.StepSeconds(num_known_rows + n));
    const double rate = tokens / seconds;
    if (rate > best_rate) {
      best_rate = rate;
      num_best = n;
    }
  }
  seconds_per_token_ = cost.StepSeconds(num_known_rows) / num_emitting;
  seconds_per_node_ = num_best > 0 ? cost.RowSeconds(num_known_rows, num_best) / num_best : 0.0;
  if (chosen_.size() < candidates.size()) chosen_.resize(candidates.size());
  for (std::size_t c = 0; c < candidates.size(); ++c) chosen_[c].clear();
  for (int n = 0; n < num_best; ++n) chosen_[nodes_[n].candidate].push_back(nodes_[n].index);
  for (std::size_t c = 0; c < candidates.size(); ++c) {
    if (static_cast<int>(chosen_[c].size()) == candidates[c].draft->size()) continue;
    std::ranges::sort(chosen_[c]);
    editor_.Select(chosen_[c], *candidates[c].draft);
  }
}

void DraftLengthController::ObserveVerdict(const DraftTree& draft,
                                           std::span<const int> accepted_nodes,
                                           CheckedNodes& checked) {
  const auto accepted = [&](int node) {
    return std::ranges::find(accepted_nodes, node) != accepted_nodes.end();
  };
  AcceptanceModel::Age(checked);
  account_.Add(static_cast<double>(accepted_nodes.size()) * seconds_per_token_ -
               draft.size() * seconds_per_node_);
  for (int node = 0; node < draft.size(); ++node) {
    const int parent = draft.parents[node];
    if (parent != kDraftRoot && !accepted(parent)) continue;
    acceptance_.Observe(draft.confidence[node], accepted(node), checked);
  }
}

}  // namespace forerun
