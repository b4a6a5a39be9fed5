// A small language model as a draft network, over a KV cache of its own in the target's blocks.
#ifndef FORERUN_CPP_DRAFT_NEURAL_MODEL_NETWORK_H_
#define FORERUN_CPP_DRAFT_NEURAL_MODEL_NETWORK_H_

#include <span>
#include <utility>
#include <vector>

#include "cpp/draft/neural/draft_network.h"
#include "cpp/model/transformer.h"

namespace forerun {

class ModelNetwork : public DraftNetwork {
 public:
  // The embedding has a row for each of the target's tokens. `target_ids` are those of the head's
  // rows; empty where they are their own numbers.
  ModelNetwork(ModelSpec spec, ModelWeights weights, std::vector<TokenId> target_ids, Ops& ops,
               const TransformerLimits& limits)
      : model_(std::move(spec), std::move(weights), ops, limits),
        target_ids_(std::move(target_ids)) {}

  void ReserveBlocks(int num_blocks) override { model_.ReserveBlocks(num_blocks); }
  ConstRows Forward(const DraftBatch& batch) override {
    return model_.Forward(
        {batch.tokens, batch.sequences, batch.logits_rows, batch.sources, batch.device_tokens});
  }
  std::span<const TokenId> target_ids() const override { return target_ids_; }
  int first_slot() const override { return 0; }

 private:
  Transformer model_;
  const std::vector<TokenId> target_ids_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_MODEL_NETWORK_H_
