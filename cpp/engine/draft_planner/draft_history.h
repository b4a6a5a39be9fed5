// What the planner remembers of one request's drafts.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_HISTORY_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_HISTORY_H_

#include "cpp/draft_tree/draft_tree.h"

namespace forerun {

// Draft nodes whose parent was accepted, with exponential forgetting.
struct CheckedNodes {
  double num_expected = 0;  // sum of the acceptance probabilities of AcceptanceModel's shared part
  double num_accepted = 0;
};

// What running the model contributed to drafts, with exponential forgetting.
struct ModelYield {
  double num_drafts = 0, num_accepted = 0, num_rows = 0;
};

struct DraftHistory {
  CheckedNodes checked;

  // For ModelPolicy.
  ModelYield model;
  int num_skipped = 0;           // steps since its last draft by the model
  double seconds_per_token = 0;  // when the model was last run for it, and what that took
  double draft_seconds = 0, catch_up_seconds = 0;

  // Of this step's draft.
  bool ran_model = false;
  const DraftTree* draft_without_model = nullptr;  // DraftingReport's
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_HISTORY_H_
