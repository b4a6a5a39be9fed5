// Chooses how much of each proposal is worth checking.
//
// Emitting tokens faster is all that counts: with R rows of known tokens and B requests that will
// emit, checking the n most promising draft nodes yields B + (sum of their acceptance
// probabilities) tokens for the cost of R + n rows. The controller knows both sides by measurement
// and takes the n with the best rate; none at all is always a candidate. The output never depends
// on its choices, only the speed does.
#ifndef FORERUN_CPP_DRAFT_DRAFT_LENGTH_H_
#define FORERUN_CPP_DRAFT_DRAFT_LENGTH_H_

#include <array>
#include <span>
#include <vector>

#include "cpp/verify/draft.h"

namespace forerun {

// Seconds of a model step as a line in its number of rows, fitted with exponential forgetting.
class StepCostModel {
 public:
  void Observe(int num_rows, double seconds);
  // REQUIRES: known().
  double Seconds(int num_rows) const;
  bool known() const { return weight_ > 0; }

 private:
  double weight_ = 0, rows_ = 0, seconds_ = 0, rows_rows_ = 0, rows_seconds_ = 0;
  double intercept_ = 0, slope_ = 0;
};

// How often a draft node is accepted, given that its parent was.
//
// Drafters state a confidence; the shared part learns what each level of confidence is worth, the
// request's part how much better or worse this request does. Both forget, so that a request that
// became predictable is noticed.
class AcceptanceModel {
 public:
  // The request's own record.
  struct Record {
    double num_expected = 0;  // sum of what the shared part predicted for the checked nodes
    double num_accepted = 0;
  };

  AcceptanceModel();
  double Probability(float confidence, const Record& record) const;
  void Observe(float confidence, bool accepted, Record& record);
  // Once a step, drafted or not: what a request did long ago matters less and less.
  static void Age(Record& record);

 private:
  static constexpr int kNumLevels = 16;
  struct Level {
    double num_checked, num_accepted;
  };
  static int LevelOf(float confidence);
  double SharedRate(float confidence) const;
  std::array<Level, kNumLevels> levels_;
};

class DraftLengthController {
 public:
  struct Candidate {
    Draft* draft;
    const AcceptanceModel::Record* record;
  };

  // Shortens each chain in place. num_known_rows are rows the step runs anyway, num_emitting the
  // requests among them that will emit a token.
  void Choose(std::span<const Candidate> candidates, int num_known_rows, int num_emitting);

  // To be called for every step that emits, with an empty draft too. Node i of a chain was accepted
  // if i < num_accepted, and checked if i <= num_accepted.
  void ObserveVerdict(const Draft& draft, int num_accepted, AcceptanceModel::Record& record);

  // For steps without prompt chunks, whose cost would drown that of a few draft rows.
  void ObserveStep(int num_rows, double model_seconds) { cost_.Observe(num_rows, model_seconds); }

 private:
  struct Node {
    double path_probability;
    int candidate;
    int depth;
  };

  StepCostModel cost_;
  AcceptanceModel acceptance_;
  std::vector<Node> nodes_;
  std::vector<int> lengths_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_DRAFT_LENGTH_H_
