// The passes of a model that a device keeps: of few shapes, since rows fill them up.
#ifndef FORERUN_CPP_MODEL_KEPT_PASSES_H_
#define FORERUN_CPP_MODEL_KEPT_PASSES_H_

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "cpp/model/decoder_stack.h"
#include "cpp/model/executor.h"
#include "cpp/model/padded_batch.h"
#include "cpp/ops/pass_graphs.h"

namespace forerun {

// Keeps nothing where the limits or the Ops, which must outlive it, do not.
class KeptPasses {
 public:
  // Passes of different kinds run different operations. Slots before `first_slot` have no keys and
  // values.
  KeptPasses(Ops& ops, const TransformerLimits& limits, int num_kinds = 1, int first_slot = 0);

  // With room for rows that fill passes up.
  TransformerLimits Padded(TransformerLimits limits) const;
  // That hold the keys and values of those rows.
  int num_blocks() const { return padded_ ? padded_->num_blocks() : 0; }
  // They are those from `first` on. What was kept is forgotten.
  void SetBlocks(BlockId first);

  // As many rows as a pass is to have that is kept, of those whose logits are all wanted. 0: it is
  // not kept.
  int NumRows(int num_rows, int num_wanted) const;
  // As PaddedBatch.
  ForwardBatch Pad(const ForwardBatch& batch, int num_rows) {
    return padded_->Pad(batch, num_rows);
  }
  // As PassGraphs, with the passes of each kind by themselves.
  bool Run(int kind, const std::function<void()>& body) { return graphs_[kind]->Run(body); }

 private:
  Ops& ops_;
  std::optional<PaddedBatch> padded_;
  std::vector<std::unique_ptr<PassGraphs>> graphs_;  // by kind
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_KEPT_PASSES_H_
