#include "cpp/engine/draft_planner/cost_model.h"

#include <algorithm>
#include <cmath>

namespace forerun {
namespace {

// A stalled step or draft tells of other load on the machine, not of rows or drafts. Twice the
// expected time still lets a real slow-down through within a few steps.
constexpr double kOutlierFactor = 2;

// Half the weight is in the last 34 steps: long enough to fit a slope through the scatter of a
// shared machine, short enough to follow the growth of the contexts.
constexpr double kStepDecay = 0.98;
// Half the weight is in the last 14 drafts: a mean needs fewer samples than a slope.
constexpr double kDraftDecay = 0.95;

// Until steps of different sizes were observed: eight more rows take half a step more, the right
// order of magnitude on every CPU that was measured.
constexpr double kPriorRows = 8;
constexpr double kPriorIncrease = 0.5;

// Half the weight of a ratio is in the last 230 steps of any number of rows: what is not observed
// fades to the line, so that a number of rows that once seemed slow is tried again.
constexpr double kRatioDecay = 0.997;
// The line weighs as much as this many observed passes of a number of rows.
constexpr double kLineWeight = 2;

// In rows squared. Below it the rows hardly differ, and a slope fitted to them would be noise; the
// last one is kept.
constexpr double kLeastVariance = 0.05;

}  // namespace

int PassCost::BucketOf(int num_rows) {
  constexpr int kSingle = 32, kPerDoubling = 4;
  if (num_rows <= kSingle) return std::max(num_rows - 1, 0);
  const double doublings = std::log2(static_cast<double>(num_rows) / kSingle);
  return std::min(kSingle + static_cast<int>(kPerDoubling * doublings), kNumBuckets - 1);
}

double PassCost::Seconds(int num_rows) const {
  const Ratio& ratio = ratios_[BucketOf(num_rows)];
  return LineSeconds(num_rows) * (ratio.sum + kLineWeight) / (ratio.weight + kLineWeight);
}

void PassCost::Observe(int num_rows, double seconds) {
  const double rows = num_rows;
  if (!known()) {
    line_.weight = 2;
    line_.rows = rows + (rows + kPriorRows);
    const double later = seconds * (1 + kPriorIncrease);
    line_.seconds = seconds + later;
    line_.rows_rows = rows * rows + (rows + kPriorRows) * (rows + kPriorRows);
    line_.rows_seconds = rows * seconds + (rows + kPriorRows) * later;
  } else {
    seconds = std::min(seconds, kOutlierFactor * Seconds(num_rows));
    line_.weight = kStepDecay * line_.weight + 1;
    line_.rows = kStepDecay * line_.rows + rows;
    line_.seconds = kStepDecay * line_.seconds + seconds;
    line_.rows_rows = kStepDecay * line_.rows_rows + rows * rows;
    line_.rows_seconds = kStepDecay * line_.rows_seconds + rows * seconds;
  }
  const double mean_rows = line_.rows / line_.weight;
  const double mean_seconds = line_.seconds / line_.weight;
  const double variance = line_.rows_rows / line_.weight - mean_rows * mean_rows;
  const double covariance = line_.rows_seconds / line_.weight - mean_rows * mean_seconds;
  if (variance > kLeastVariance) line_.slope = std::max(0.0, covariance / variance);
  line_.intercept = std::max(0.0, mean_seconds - line_.slope * mean_rows);
  for (Ratio& ratio : ratios_) {
    ratio.sum *= kRatioDecay;
    ratio.weight *= kRatioDecay;
  }
  if (LineSeconds(num_rows) <= 0) return;
  Ratio& ratio = ratios_[BucketOf(num_rows)];
  ratio.sum += seconds / LineSeconds(num_rows);
  ratio.weight += 1;
}

void CostModel::Mean::Observe(double value) {
  if (mean > 0) value = std::min(value, kOutlierFactor * mean);
  weight = kDraftDecay * weight + 1;
  mean += (value - mean) / weight;
}

double CostModel::RowSeconds(int num_known_rows, double num_rows) const {
  if (num_rows <= 0) return 0;
  const double before = StepSeconds(num_known_rows);
  // More rows never take less time, even where measurements say so.
  const int num_whole = static_cast<int>(num_rows);
  const double part = num_rows - num_whole;
  const double low = StepSeconds(num_known_rows + num_whole);
  const double high = part > 0 ? StepSeconds(num_known_rows + num_whole + 1) : low;
  return std::max(0.0, (1 - part) * low + part * high - before);
}

void CostModel::ObserveDrafting(int num_requests, int num_forwards, int num_catch_up_tokens,
                                double seconds) {
  if (num_requests == 0 || num_forwards == 0) return;
  num_passes_.Observe(num_forwards);
  if (num_catch_up_tokens == 0) return draft_pass_.Observe(num_requests, seconds / num_forwards);
  if (!draft_pass_.known()) {
    // The first pass computes the tokens as well, kFreeCatchUpTokens in the time of one.
    const double num_passes =
        num_forwards - 1 + std::max(1.0, double{1.0} * num_catch_up_tokens / kFreeCatchUpTokens);
    draft_pass_.Observe(num_requests, seconds / num_passes);
  }
  const double catch_up_seconds = seconds - DraftPassSeconds(num_requests) * num_forwards;
  if (catch_up_seconds > 0) catch_up_token_.Observe(catch_up_seconds / num_catch_up_tokens);
}

}  // namespace forerun
