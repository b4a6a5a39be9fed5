// How many seconds a target pass and a draft take, by measurement.
//
// A pass, of the target or of the draft model, is a line in its number of rows, and beside it how
// much more or less than the line passes of about as many rows took: kernels multiply rows in
// groups, so the true curve has steps. Only ratios to the line are kept by rows, since the line
// follows the growth of contexts and the load of the machine within a few steps. What the model has
// to catch up with is a mean per token. All of them forget exponentially, and an outlier counts as
// twice what was expected.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_COST_MODEL_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_COST_MODEL_H_

#include <array>
#include <functional>
#include <utility>

namespace forerun {

// Of one kind of forward pass.
class PassCost {
 public:
  void Observe(int num_rows, double seconds);
  // Whether a pass was observed.
  bool known() const { return line_.weight > 0; }
  // 0 as long as nothing is known.
  double Seconds(int num_rows) const;

 private:
  // Least squares over (rows, seconds), with exponential forgetting.
  struct Line {
    double weight = 0, rows = 0, seconds = 0, rows_rows = 0, rows_seconds = 0;
    double intercept = 0, slope = 0;
  };

  // Actual time over that of the line, of passes of one bucket's numbers of rows.
  struct Ratio {
    double sum = 0, weight = 0;
  };
  static constexpr int kNumBuckets = 48;
  // A bucket for each number of rows up to 32, then four for every doubling.
  static int BucketOf(int num_rows);

  double LineSeconds(int num_rows) const { return line_.intercept + line_.slope * num_rows; }

  Line line_;
  std::array<Ratio, kNumBuckets> ratios_;
};

class CostModel {
 public:
  // This many catch-up tokens in a forward pass cost next to nothing: skinny matrix products are
  // bound by reading the weights up to about 16 rows.
  static constexpr int kFreeCatchUpTokens = 16;

  // padded_rows(n): as many rows as a target pass of n rows takes as long as; none: n.
  explicit CostModel(std::function<int(int)> padded_rows = {})
      : padded_rows_(std::move(padded_rows)) {}

  // A target pass without prompt chunks, whose cost would hide that of a few draft rows.
  void ObserveStep(int num_rows, double seconds) { step_.Observe(Padded(num_rows), seconds); }

  // The drafts of a step, by a model. num_catch_up_tokens are those of requests that had more than
  // kFreeCatchUpTokens of them; 0 where there was none.
  void ObserveDrafting(int num_requests, int num_forwards, int num_catch_up_tokens, double seconds);

  // Whether a step was observed.
  bool known() const { return step_.known(); }
  // Of a target pass. REQUIRES: known().
  double StepSeconds(int num_rows) const { return step_.Seconds(Padded(num_rows)); }
  // By how much these rows make a target pass longer. REQUIRES: known().
  double RowSeconds(int num_known_rows, double num_rows) const;

  // Whether a draft by a model was observed. The times below are 0 before.
  bool knows_drafting() const { return draft_pass_.known(); }
  // Of the drafts of some requests at once, for which the model has nothing to catch up with, and
  // of one of the forward passes that it takes.
  double DraftSeconds(int num_requests) const {
    return num_passes_.mean * DraftPassSeconds(num_requests);
  }
  double DraftPassSeconds(int num_requests) const { return draft_pass_.Seconds(num_requests); }
  double CatchUpSeconds(int num_tokens) const {
    return num_tokens <= kFreeCatchUpTokens ? 0.0 : num_tokens * catch_up_token_.mean;
  }

 private:
  // Of all observations at first and of the last ones later.
  struct Mean {
    double mean = 0, weight = 0;
    void Observe(double value);
  };

  int Padded(int num_rows) const { return padded_rows_ ? padded_rows_(num_rows) : num_rows; }

  const std::function<int(int)> padded_rows_;
  PassCost step_, draft_pass_;
  Mean num_passes_;  // of a draft
  Mean catch_up_token_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_COST_MODEL_H_
