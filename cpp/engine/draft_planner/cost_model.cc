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

void CostModel::Mean::Observe(double seconds) {
  if (mean > 0) seconds = std::min(seconds, kOutlierFactor * mean);
  weight = kDraftDecay * weight + 1;
  mean += (seconds - mean) / weight;
}

int CostModel::BucketOf(int num_rows) {
  constexpr int kSingle = 32, kPerDoubling = 4;
  if (num_rows <= kSingle) return std::max(num_rows - 1, 0);
  const double doublings = std::log2(static_cast<double>(num_rows) / kSingle);
  return std::min(kSingle + static_cast<int>(kPerDoubling * doublings), kNumBuckets - 1);
}

double CostModel::StepSeconds(int num_rows) const {
  const Ratio& ratio = ratios_[BucketOf(num_rows)];
  return LineSeconds(num_rows) * (ratio.sum + kLineWeight) / (ratio.weight + kLineWeight);
}

void CostModel::ObserveStep(int num_rows, double seconds) {
  const double rows = num_rows;
  if (!known()) {
    step_.weight = 2;
    step_.rows = rows + (rows + kPriorRows);
    const double later = seconds * (1 + kPriorIncrease);
    step_.seconds = seconds + later;
    step_.rows_rows = rows * rows + (rows + kPriorRows) * (rows + kPriorRows);
    step_.rows_seconds = rows * seconds + (rows + kPriorRows) * later;
  } else {
    seconds = std::min(seconds, kOutlierFactor * StepSeconds(num_rows));
    step_.weight = kStepDecay * step_.weight + 1;
    step_.rows = kStepDecay * step_.rows + rows;
    step_.seconds = kStepDecay * step_.seconds + seconds;
    step_.rows_rows = kStepDecay * step_.rows_rows + rows * rows;
    step_.rows_seconds = kStepDecay * step_.rows_seconds + rows * seconds;
  }
  const double mean_rows = step_.rows / step_.weight;
  const double mean_seconds = step_.seconds / step_.weight;
  const double variance = step_.rows_rows / step_.weight - mean_rows * mean_rows;
  const double covariance = step_.rows_seconds / step_.weight - mean_rows * mean_seconds;
  if (variance > kLeastVariance) step_.slope = std::max(0.0, covariance / variance);
  step_.intercept = std::max(0.0, mean_seconds - step_.slope * mean_rows);
  for (Ratio& ratio : ratios_) {
    ratio.sum *= kRatioDecay;
    ratio.weight *= kRatioDecay;
  }
  if (LineSeconds(num_rows) <= 0) return;
  Ratio& ratio = ratios_[BucketOf(num_rows)];
  ratio.sum += seconds / LineSeconds(num_rows);
  ratio.weight += 1;
}

void CostModel::ObserveDrafting(int num_requests, int num_forwards, int num_catch_up_tokens,
                                double seconds) {
  if (num_requests == 0 || num_forwards == 0) return;
  if (num_catch_up_tokens == 0) {
    draft_.Observe(seconds / num_requests);
    draft_forward_.Observe(seconds / num_requests / num_forwards);
    return;
  }
  const double catch_up_seconds = seconds - draft_.mean * num_requests;
  if (catch_up_seconds > 0) catch_up_token_.Observe(catch_up_seconds / num_catch_up_tokens);
}

}  // namespace forerun
