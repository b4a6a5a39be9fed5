// Chooses which part of each proposal is worth checking.
//
// Emitting tokens faster is all that counts: with R rows of known tokens and B requests that will
// emit, checking the n most promising draft nodes yields B + (sum of their acceptance
// probabilities) tokens for the cost of R + n rows. The controller knows both sides by measurement
// and takes the n with the best rate; none at all is always a candidate. The output never depends
// on its choices, only the speed does.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_LENGTH_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_LENGTH_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft_tree/draft_editor.h"
#include "cpp/draft_tree/draft_tree.h"

namespace forerun {

// Seconds of a model step as a line in its number of rows, fitted with exponential forgetting.
class StepCostModel {
 public:
  void Observe(int num_rows, double seconds);
  // REQUIRES: known().
  double Seconds(int num_rows) const;
  // Of one more.
  double seconds_per_row() const { return slope_; }
  bool known() const { return weight_ > 0; }

 private:
  double weight_ = 0, rows_ = 0, seconds_ = 0, rows_rows_ = 0, rows_seconds_ = 0;
  double intercept_ = 0, slope_ = 0;
};

// How often a draft node is accepted, given that its parent was.
//
// Drafters state a confidence; the shared part learns what each level of confidence is worth, the
// request's part how much better or worse this request does. Both forget, so that a request that
// became predictable is noticed. A confidence of 1, such as that of what a grammar forces, is taken
// at its word.
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
    DraftTree* draft;
    const AcceptanceModel::Record* record;
  };

  // Leaves of each draft, in place, the nodes that are worth their rows. num_known_rows are rows
  // the step runs anyway, num_emitting the requests among them that will emit a token.
  void Choose(std::span<const Candidate> candidates, int num_known_rows, int num_emitting);

  // To be called for every step that emits, with an empty draft too. `accepted_nodes` is the path
  // that was accepted; a node was checked if its parent was accepted, whichever sibling came first.
  void ObserveVerdict(const DraftTree& draft, std::span<const int> accepted_nodes,
                      AcceptanceModel::Record& record);

  // For steps without prompt chunks, whose cost would drown that of a few draft rows.
  void ObserveStep(int num_rows, double model_seconds) { cost_.Observe(num_rows, model_seconds); }

  const StepCostModel& cost() const { return cost_; }

 private:
  struct Node {
    double path_probability;
    int candidate;
    int index;  // in its draft
  };

  StepCostModel cost_;
  AcceptanceModel acceptance_;
  std::vector<Node> nodes_;
  std::vector<std::vector<std::int32_t>> chosen_;  // by candidate, and more from larger steps
  DraftEditor editor_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_LENGTH_H_
