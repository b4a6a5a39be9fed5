// Chooses which nodes of the proposed drafts to verify.
//
// The goal is the most tokens per second. With R rows of known tokens and B requests that will
// emit, verifying the n nodes that are most likely to be accepted yields B + (sum of their
// acceptance probabilities) tokens for the cost of R + n rows. The controller estimates both by
// measurement and takes the n with the best rate, which may be 0, as long as its TimeAccount is in
// credit. The output never depends on its choices, only the speed does.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_LENGTH_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_LENGTH_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft_tree/draft_editor.h"
#include "cpp/draft_tree/draft_tree.h"
#include "cpp/engine/draft_planner/cost_model.h"
#include "cpp/engine/draft_planner/draft_history.h"
#include "cpp/engine/draft_planner/time_account.h"

namespace forerun {

// How often a draft node is accepted, given that its parent was.
//
// Drafters state a confidence. The shared part learns the acceptance rate of each level of
// confidence, a request's CheckedNodes how much better or worse this request does. Both forget, so
// that a request that became predictable is noticed. A confidence of 1, such as that of a forced
// token, is believed.
class AcceptanceModel {
 public:
  AcceptanceModel();
  double Probability(float confidence, const CheckedNodes& checked) const;
  void Observe(float confidence, bool accepted, CheckedNodes& checked);
  // To be called once per step of a request, with a draft or without.
  static void Age(CheckedNodes& checked);

 private:
  // Fine enough to tell 0.90 from 0.97, coarse enough that every level is observed often.
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
    const CheckedNodes* checked;
  };

  // Removes from each draft the nodes that are not worth their rows. num_known_rows are rows that
  // the step runs in any case, num_emitting the requests among them that will emit a token.
  void Choose(const CostModel& cost, std::span<const Candidate> candidates, int num_known_rows,
              int num_emitting);

  // To be called for every step that emits, with an empty draft too. `accepted_nodes` is the path
  // that was accepted. All children of an accepted node count as checked, in any order.
  void ObserveVerdict(const DraftTree& draft, std::span<const int> accepted_nodes,
                      CheckedNodes& checked);

 private:
  struct Node {
    double path_probability;
    int candidate;
    int index;  // in its draft
  };

  AcceptanceModel acceptance_;
  // Texts that copy pause for a while, and what they save is a multiple of what a pause costs.
  TimeAccount account_{/*most_steps=*/10};
  double seconds_per_token_ = 0, seconds_per_node_ = 0;  // of the last choice
  std::vector<Node> nodes_;
  std::vector<std::vector<std::int32_t>> chosen_;  // by candidate, and more from larger steps
  DraftEditor editor_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_LENGTH_H_
