// The constraints of one step: calls them between one Begin and one End of their batch, and
// computes all their masks in one call. Keeps its memory from step to step.
#ifndef FORERUN_CPP_DRAFT_TREE_STEP_MASKS_H_
#define FORERUN_CPP_DRAFT_TREE_STEP_MASKS_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cpp/draft_tree/constraint_cursor.h"
#include "cpp/draft_tree/draft_tree.h"
#include "forerun/request_hooks.h"

namespace forerun {

class StepMasks {
 public:
  explicit StepMasks(int vocab_size) : words_per_row_((vocab_size + 31) / 32) {}

  StepMasks(const StepMasks&) = delete;
  StepMasks& operator=(const StepMasks&) = delete;

  // To be called before the step's first call to a constraint of this batch.
  void Open(ConstraintBatch& batch);

  // A request whose masks are needed, with its draft as the target will see it. Both must stay as
  // they are until Compute.
  void Add(ConstraintCursor& cursor, const DraftTree& draft);

  // Computes the masks of what was added since the last call, gives them to the cursors, and closes
  // the batches. A failure is its request's: ConstraintCursor::Allowed throws it.
  void Compute();

  // Ends a step, also one that failed; does nothing after Compute.
  void Close() noexcept;

 private:
  void Fill(ConstraintBatch& batch);
  std::span<std::string> FailuresOf(const MaskRequest& request);

  const int words_per_row_;

  // Change in each step.
  std::vector<ConstraintBatch*> open_;
  std::vector<ConstraintCursor*> cursors_;
  std::vector<MaskRequest> requests_;  // [cursors_.size()]
  std::vector<MaskRequest> of_batch_;  // those of one batch that can be asked
  std::vector<std::uint32_t> words_;   // [num_rows_, words_per_row_]
  std::vector<std::string> failures_;  // [num_rows_]
  int num_rows_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TREE_STEP_MASKS_H_
