#include "cpp/engine/draft_planner/draft_length.h"

#include <algorithm>
#include <cmath>

namespace forerun {
namespace {

// What is remembered is about the last 1 / (1 - decay) steps. Forgetting makes hopeless drafts be
// tried again now and then; kConfidenceWeight * (1 - kSharedDecay) bounds what that costs, here to
// about a percent of the time.
constexpr double kCostDecay = 0.98;
constexpr double kSharedDecay = 0.998;
constexpr double kRequestDecay = 0.97;

// Before anything is measured: eight more rows cost half a step more, which is the right order on
// every CPU tried.
constexpr double kPriorRows = 8;
constexpr double kPriorIncrease = 0.5;

// A drafter's stated confidence weighs as much as this many checked nodes.
constexpr double kConfidenceWeight = 4;
constexpr double kRequestWeight = 2;

constexpr double kMaxProbability = 0.99;

// One slow step says more about the machine's neighbours than about rows.
constexpr double kOutlierFactor = 2;

}  // namespace

void StepCostModel::Observe(int num_rows, double seconds) {
  const double rows = num_rows;
  if (!known()) {
    weight_ = 2;
    rows_ = rows + (rows + kPriorRows);
    const double later = seconds * (1 + kPriorIncrease);
    seconds_ = seconds + later;
    rows_rows_ = rows * rows + (rows + kPriorRows) * (rows + kPriorRows);
    rows_seconds_ = rows * seconds + (rows + kPriorRows) * later;
  } else {
    seconds = std::min(seconds, kOutlierFactor * Seconds(num_rows));
    weight_ = kCostDecay * weight_ + 1;
    rows_ = kCostDecay * rows_ + rows;
    seconds_ = kCostDecay * seconds_ + seconds;
    rows_rows_ = kCostDecay * rows_rows_ + rows * rows;
    rows_seconds_ = kCostDecay * rows_seconds_ + rows * seconds;
  }
  const double mean_rows = rows_ / weight_;
  const double mean_seconds = seconds_ / weight_;
  const double variance = rows_rows_ / weight_ - mean_rows * mean_rows;
  const double covariance = rows_seconds_ / weight_ - mean_rows * mean_seconds;
  // With no spread left the last slope stays.
  if (variance > 0.05) slope_ = std::max(0.0, covariance / variance);
  intercept_ = std::max(0.0, mean_seconds - slope_ * mean_rows);
}

double StepCostModel::Seconds(int num_rows) const { return intercept_ + slope_ * num_rows; }

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

double AcceptanceModel::Probability(float confidence, const Record& record) const {
  if (confidence >= 1.0f) return kMaxProbability;
  const double ratio =
      (record.num_accepted + kRequestWeight) / (record.num_expected + kRequestWeight);
  return std::clamp(SharedRate(confidence) * ratio, 0.0, kMaxProbability);
}

void AcceptanceModel::Observe(float confidence, bool accepted, Record& record) {
  if (confidence >= 1.0f) return;
  record.num_expected += SharedRate(confidence);
  record.num_accepted += accepted ? 1 : 0;
  Level& level = levels_[LevelOf(confidence)];
  level.num_checked = kSharedDecay * level.num_checked + 1;
  level.num_accepted = kSharedDecay * level.num_accepted + (accepted ? 1 : 0);
}

void AcceptanceModel::Age(Record& record) {
  record.num_expected *= kRequestDecay;
  record.num_accepted *= kRequestDecay;
}

void DraftLengthController::Choose(std::span<const Candidate> candidates, int num_known_rows,
                                   int num_emitting) {
  if (!cost_.known() || num_emitting == 0) return;
  nodes_.clear();
  for (int c = 0; c < static_cast<int>(candidates.size()); ++c) {
    const DraftTree& draft = *candidates[c].draft;
    const int begin = static_cast<int>(nodes_.size());
    for (int i = 0; i < draft.size(); ++i) {
      const int parent = draft.parents[i];
      const double above = parent == kDraftRoot ? 1.0 : nodes_[begin + parent].path_probability;
      const double probability =
          acceptance_.Probability(draft.confidence[i], *candidates[c].record);
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
  double best_rate = tokens / cost_.Seconds(num_known_rows);
  for (int n = 1; n <= static_cast<int>(nodes_.size()); ++n) {
    tokens += nodes_[n - 1].path_probability;
    const double rate = tokens / cost_.Seconds(num_known_rows + n);
    if (rate > best_rate) {
      best_rate = rate;
      num_best = n;
    }
  }
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
                                           AcceptanceModel::Record& record) {
  const auto accepted = [&](int node) {
    return std::ranges::find(accepted_nodes, node) != accepted_nodes.end();
  };
  AcceptanceModel::Age(record);
  for (int node = 0; node < draft.size(); ++node) {
    const int parent = draft.parents[node];
    if (parent != kDraftRoot && !accepted(parent)) continue;
    acceptance_.Observe(draft.confidence[node], accepted(node), record);
  }
}

}  // namespace forerun
