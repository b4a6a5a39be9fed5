// How many seconds a target pass and a draft take, by measurement.
//
// A target pass is a line in its number of rows, and beside it how much more or less than the line
// passes of about as many rows took: kernels multiply rows in groups, so the true curve has steps.
// Only ratios to the line are kept by rows, since the line follows the growth of contexts and the
// load of the machine within a few steps. Drafting is a mean per draft and per forward pass
// of the draft model, and a mean per token that the model had to catch up with. All of them forget
// exponentially, and an outlier counts as twice what was expected.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_COST_MODEL_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_COST_MODEL_H_

#include <array>

namespace forerun {

class CostModel {
 public:
  // This many catch-up tokens in a forward pass cost next to nothing: skinny matrix products are
  // bound by reading the weights up to about 16 rows.
  static constexpr int kFreeCatchUpTokens = 16;

  // A target pass without prompt chunks, whose cost would hide that of a few draft rows.
  void ObserveStep(int num_rows, double seconds);

  // The drafts of a step, by a model. num_catch_up_tokens are those of requests that had more than
  // kFreeCatchUpTokens of them; 0 where there was none.
  void ObserveDrafting(int num_requests, int num_forwards, int num_catch_up_tokens, double seconds);

  // Whether a step was observed.
  bool known() const { return step_.weight > 0; }
  // Of a target pass. REQUIRES: known().
  double StepSeconds(int num_rows) const;
  double seconds_per_row() const { return step_.slope; }

  // Of a draft of one request for which the model has nothing to catch up with, and of that
  // request's part of one forward pass.
  double draft_seconds() const { return draft_.mean; }
  double draft_forward_seconds() const { return draft_forward_.mean; }
  double CatchUpSeconds(int num_tokens) const {
    return num_tokens <= kFreeCatchUpTokens ? 0.0 : num_tokens * catch_up_token_.mean;
  }

 private:
  // Least squares over (rows, seconds), with exponential forgetting.
  struct Line {
    double weight = 0, rows = 0, seconds = 0, rows_rows = 0, rows_seconds = 0;
    double intercept = 0, slope = 0;
  };

  // Of all observations at first and of the last ones later.
  struct Mean {
    double mean = 0, weight = 0;
    void Observe(double seconds);
  };

  // Actual time over that of the line, of passes of one bucket's numbers of rows.
  struct Ratio {
    double sum = 0, weight = 0;
  };
  static constexpr int kNumBuckets = 48;
  // A bucket for each number of rows up to 32, then four for every doubling.
  static int BucketOf(int num_rows);

  double LineSeconds(int num_rows) const { return step_.intercept + step_.slope * num_rows; }

  Line step_;
  std::array<Ratio, kNumBuckets> ratios_;
  Mean draft_, draft_forward_, catch_up_token_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_COST_MODEL_H_
