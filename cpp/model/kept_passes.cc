#include "cpp/model/kept_passes.h"

namespace forerun {

KeptPasses::KeptPasses(Ops& ops, const TransformerLimits& limits, int num_kinds, int first_slot)
    : ops_(ops) {
  // A shorter model has no slot for padding.
  if (!limits.keeps_passes || limits.max_model_len <= first_slot) return;
  for (int kind = 0; kind < num_kinds; ++kind) {
    graphs_.push_back(ops.MakePassGraphs());
    if (graphs_.back() == nullptr) return;
  }
  padded_.emplace(limits.max_rows, PassGraphs::kMostPadding,
                  PaddedBatch::Slots{limits.block_size, limits.max_model_len, first_slot});
  padded_->SetBlocks(limits.num_blocks);
}

TransformerLimits KeptPasses::Padded(TransformerLimits limits) const {
  if (!padded_) return limits;
  if (limits.max_sequences > 0) limits.max_sequences += PassGraphs::kMostPadding;
  limits.max_rows += PassGraphs::kMostPadding;
  limits.max_logits_rows += PassGraphs::kMostPadding;
  limits.num_blocks += num_blocks();
  return limits;
}

void KeptPasses::SetBlocks(BlockId first) {
  if (!padded_) return;
  padded_->SetBlocks(first);
  for (std::unique_ptr<PassGraphs>& graphs : graphs_) graphs = ops_.MakePassGraphs();
}

int KeptPasses::NumRows(int num_rows, int num_wanted) const {
  return padded_ && num_rows == num_wanted ? graphs_[0]->PaddedRows(num_rows) : 0;
}

}  // namespace forerun
