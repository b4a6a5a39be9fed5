// The rows of one step: what the executor is asked, and which keys and values stay where.
#ifndef FORERUN_CPP_ENGINE_STEP_BATCH_H_
#define FORERUN_CPP_ENGINE_STEP_BATCH_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft_tree/draft_editor.h"
#include "cpp/model/executor.h"
#include "cpp/sched/step_plan.h"
#include "cpp/verify/verify.h"
#include "forerun/types.h"

namespace forerun {

class StepBatch {
 public:
  StepBatch(int max_num_seqs, int max_rows);

  // Rows of known tokens, then of the draft, request by request. Cuts every draft to what was
  // planned, and orders it so that its first path lies where a chain would. The requests must stay
  // as they are until the forward pass and the moves are done.
  void Build(const StepPlan& plan);
  ForwardBatch forward() const { return {tokens_, sequences_, logits_rows_}; }

  // Adds what brings the accepted nodes right behind the known tokens. REQUIRES: built with it.
  void AddMoves(const PlannedRequest& planned, const Verdict& verdict);
  std::span<const KvMove> moves() const { return moves_; }

 private:
  DraftEditor editor_;
  std::vector<TokenId> tokens_;
  std::vector<SequenceRows> sequences_;
  std::vector<std::int32_t> logits_rows_;
  std::vector<KvMove> moves_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_STEP_BATCH_H_
