#include "cpp/draft/draft_price.h"

#include <algorithm>

namespace forerun {
namespace {

constexpr double kDecay = 0.95;
// Before this many drafts nothing is known about a request.
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
}

bool DraftPrice::Pays(const StepCost& step, Record& record) const {
  const double gain = record.num_accepted * step.seconds_per_request;
  const double price =
      record.num_drafts * seconds_per_draft_ + record.num_rows * step.seconds_per_row;
  if (record.num_drafts < kFewDrafts || gain >= price) {
    record.patience = kLeastPatience;
  } else if (++record.num_skipped < record.patience) {
    return false;
  } else {
    record.patience = std::min(2 * record.patience, kMostPatience);
  }
  record.num_skipped = 0;
  return true;
}

double DraftPrice::LeastPathProbability(const StepCost& step) const {
  if (step.seconds_per_request <= 0) return 0;
  return (step.seconds_per_row + seconds_per_forward_) / step.seconds_per_request;
}

}  // namespace forerun
