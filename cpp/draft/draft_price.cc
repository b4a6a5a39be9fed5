#include "cpp/draft/draft_price.h"

#include <algorithm>

namespace forerun {
namespace {

constexpr double kDecay = 0.95;
constexpr double kSharedDecay = 0.995;
// Before this many drafts nothing is known; what all requests have in common weighs as much.
constexpr double kFewDrafts = 3;
// One slow pass says more about the machine's neighbours than about the drafter.
constexpr double kOutlierFactor = 2;

void Follow(double seconds, double& mean) {
  if (mean == 0) {
    mean = seconds;
    return;
  }
  mean = kDecay * mean + (1 - kDecay) * std::min(seconds, kOutlierFactor * mean);
}

}  // namespace

void DraftPrice::ObserveDrafting(int num_requests, int num_forwards, double seconds) {
  if (num_requests == 0 || num_forwards == 0) return;
  Follow(seconds / num_requests, seconds_per_draft_);
  Follow(seconds / num_requests / num_forwards, seconds_per_forward_);
}

void DraftPrice::ObserveVerdict(int num_rows, int num_accepted, Record& record) {
  if (!record.was_asked) return;
  record.was_asked = false;
  record.num_drafts = kDecay * record.num_drafts + 1;
  record.num_accepted = kDecay * record.num_accepted + num_accepted;
  record.num_rows = kDecay * record.num_rows + num_rows;
  num_drafts_ = kSharedDecay * num_drafts_ + 1;
  num_accepted_ = kSharedDecay * num_accepted_ + num_accepted;
  num_rows_ = kSharedDecay * num_rows_ + num_rows;
}

bool DraftPrice::Pays(const StepCost& step, Record& record) {
  const double weight = num_drafts_ > 0 ? kFewDrafts / num_drafts_ : 0;
  const double num_accepted = record.num_accepted + weight * num_accepted_;
  const double num_rows = record.num_rows + weight * num_rows_;
  const double num_drafts = record.num_drafts + weight * num_drafts_;
  const double gain = num_accepted * step.seconds_per_request;
  const double price = num_drafts * seconds_per_draft_ + num_rows * step.seconds_per_row;
  if (num_drafts_ < kFewDrafts || gain >= price) {
    record.patience = kLeastPatience;
  } else {
    ++num_skipped_;
    // Requests can be too short to lose their own patience.
    if (++record.num_skipped < record.patience && num_skipped_ < kMostPatience) return false;
    record.patience = std::min(2 * record.patience, kMostPatience);
  }
  record.num_skipped = num_skipped_ = 0;
  return true;
}

double DraftPrice::LeastPathProbability(const StepCost& step) const {
  if (step.seconds_per_request <= 0) return 0;
  return (step.seconds_per_row + seconds_per_forward_) / step.seconds_per_request;
}

}  // namespace forerun
