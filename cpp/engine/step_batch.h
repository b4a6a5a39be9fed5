// The rows of one step: the executor's input, and the moves of KV after the verification.
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
  // planned, and orders it depth first, so that its first path has the slots of a chain. The
  // requests must not change until the forward pass and the moves are done.
  void Build(const StepPlan& plan);
  ForwardBatch forward() const { return {tokens_, sequences_, logits_rows_}; }

  // Adds the moves that bring the accepted nodes' KV to the slots right after the known tokens.
  // REQUIRES: built with it.
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
