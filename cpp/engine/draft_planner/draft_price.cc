#include "cpp/engine/draft_planner/draft_price.h"

#include <algorithm>
#include <utility>

namespace forerun {
namespace {

constexpr double kTimeDecay = 0.95;
constexpr double kRecordDecay = 0.98;
constexpr double kSharedDecay = 0.97;
// For each step without a draft: the text may have become another.
constexpr double kSkipDecay = 0.995;
// One slow pass says more about the machine's neighbours than about the drafter.
constexpr double kOutlierFactor = 2;

// What all requests' drafts bring weighs as much as this many of the request's own.
constexpr double kSharedWeight = 8;
// A text's end is not known: it is expected halfway, and not far away.
constexpr double kShareOfTokensLeft = 0.5;
constexpr double kForesight = 256;
// Of the time that goes by without drafts because they seem not to pay.
constexpr double kTrialShare = 0.01;

}  // namespace

void DraftPrice::Seconds::Observe(double seconds) {
  if (mean > 0) seconds = std::min(seconds, kOutlierFactor * mean);
  weight = kTimeDecay * weight + 1;
  mean += (seconds - mean) / weight;
}

void DraftPrice::ObserveDrafting(int num_requests, int num_forwards, int num_rows_behind,
                                 double seconds) {
  if (num_requests == 0 || num_forwards == 0) return;
  if (num_rows_behind == 0) {
    per_draft_.Observe(seconds / num_requests);
    per_forward_.Observe(seconds / num_requests / num_forwards);
    return;
  }
  const double catching_up = seconds - per_draft_.mean * num_requests;
  if (catching_up > 0) per_missing_row_.Observe(catching_up / num_rows_behind);
}

void DraftPrice::ObserveVerdict(int num_rows, int num_accepted, Record& record) {
  if (!record.was_asked) return;
  record.was_asked = false;
  record.trial_seconds = 0;
  record.num_first_left = std::max(0, record.num_first_left - 1);
  const auto count = [&](double decay, Record& counts) {
    counts.num_drafts = decay * counts.num_drafts + 1;
    counts.num_accepted = decay * counts.num_accepted + num_accepted;
    counts.num_rows = decay * counts.num_rows + num_rows;
  };
  count(kRecordDecay, record);
  count(kSharedDecay, all_);
}

double DraftPrice::CatchingUp(int num_rows_behind) const {
  return num_rows_behind <= kFewRows ? 0.0 : num_rows_behind * per_missing_row_.mean;
}

bool DraftPrice::Pays(const StepCost& step, int num_rows_behind, int num_tokens_left,
                      Record& record) {
  const double weight = kSharedWeight / all_.num_drafts;
  const double num_drafts = record.num_drafts + kSharedWeight;
  const double accepted = (record.num_accepted + weight * all_.num_accepted) / num_drafts;
  const double rows = (record.num_rows + weight * all_.num_rows) / num_drafts;
  const double price = per_draft_.mean + rows * step.seconds_per_row;
  const double gain = accepted * step.seconds_per_request - price;
  const double num_drafts_left =
      std::min(kShareOfTokensLeft * num_tokens_left, kForesight) / (1 + accepted);
  const double catching_up = CatchingUp(num_rows_behind);
  if (record.num_first_left > 0 && catching_up < step.seconds_per_request) return true;
  if (gain >= 0 && gain * num_drafts_left >= catching_up) return true;
  record.trial_seconds += kTrialShare * step.seconds_per_request;
  record.trial_seconds += std::exchange(all_.trial_seconds, 0.0);
  if (record.trial_seconds >= price + catching_up) return true;
  for (double* count : {&record.num_drafts, &record.num_accepted, &record.num_rows}) {
    *count *= kSkipDecay;
  }
  return false;
}

double DraftPrice::LeastPathProbability(const StepCost& step) const {
  if (step.seconds_per_request <= 0) return 0;
  return (step.seconds_per_row + per_forward_.mean) / step.seconds_per_request;
}

}  // namespace forerun
