// The time that drafts saved, less the time that they took.
//
// Estimates of what a draft will yield can be wrong for long, as where a text changes. Who asks the
// account before spending time loses at most its credit, once, and a small share of the time.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_TIME_ACCOUNT_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_TIME_ACCOUNT_H_

#include <algorithm>
#include <cmath>

namespace forerun {

class TimeAccount {
 public:
  // Of the time that goes by: what may be spent beyond what was saved.
  static constexpr double kShare = 0.005;

  // most_steps: how many steps of plain decoding of one request can be saved up. More requests at
  // once average over more drafts, and need fewer.
  explicit TimeAccount(double most_steps) : most_steps_(most_steps) {}

  // Once per step, before drafts. Begins with some credit: a drafter that was configured is worth a
  // try.
  void BeginStep(int num_requests, double step_seconds) {
    const bool is_first = most_ == 0;
    const auto steps = [&](double of_one_request) {
      return step_seconds * std::max(1.0, of_one_request / std::sqrt(double{1.0} * num_requests));
    };
    most_ = steps(most_steps_);
    if (is_first) credit_ = steps(kFirstSteps);
    credit_ += kShare * step_seconds;
    // What exceeds the credit reduces the debt.
    debt_ = std::max(0.0, debt_ - std::max(0.0, credit_ - most_));
    credit_ = std::min(credit_, most_);
  }

  void Add(double saved_seconds) { credit_ += saved_seconds; }
  bool in_credit() const { return credit_ > 0; }

  // Time spent on something that only later drafts can earn. It is a debt of its own, that stops
  // the next such investment and not the drafts that repay it.
  void Invest(double seconds) { debt_ += seconds; }
  bool MayInvest(double planned_seconds) const { return debt_ + planned_seconds < most_; }

 private:
  // They outlast most runs of bad luck of drafts that are worth making.
  static constexpr double kFirstSteps = 3;

  const double most_steps_;
  double most_ = 0, credit_ = 0, debt_ = 0;  // seconds
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_TIME_ACCOUNT_H_
