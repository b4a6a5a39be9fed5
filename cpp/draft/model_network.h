// A small language model of the target's vocabulary as a draft network, over a KV cache of its own
// in the target's blocks.
#ifndef FORERUN_CPP_DRAFT_MODEL_NETWORK_H_
#define FORERUN_CPP_DRAFT_MODEL_NETWORK_H_

#include <utility>

#include "cpp/draft/draft_network.h"
#include "cpp/model/transformer.h"

namespace forerun {

class ModelNetwork : public DraftNetwork {
 public:
  ModelNetwork(ModelSpec spec, ModelWeights weights, Ops& ops, const TransformerLimits& limits)
      : model_(std::move(spec), std::move(weights), ops, limits) {}

  ConstRows Forward(const DraftBatch& batch) override {
    return model_.Forward({batch.tokens, batch.sequences, batch.logits_rows});
  }
  int first_slot() const override { return 0; }

 private:
  Transformer model_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_MODEL_NETWORK_H_
