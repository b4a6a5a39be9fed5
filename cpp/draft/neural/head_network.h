// EAGLE, EAGLE-3 and MTP heads as draft networks.
#ifndef FORERUN_CPP_DRAFT_NEURAL_HEAD_NETWORK_H_
#define FORERUN_CPP_DRAFT_NEURAL_HEAD_NETWORK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft/formats/draft_head.h"
#include "cpp/draft/neural/draft_network.h"
#include "cpp/model/decoder_stack.h"
#include "cpp/model/kept_passes.h"
#include "cpp/model/transformer.h"

namespace forerun {

class HeadNetwork : public DraftNetwork {
 public:
  // The target, which keeps the head's features, and the Ops must outlive it.
  HeadNetwork(DraftHeadSpec spec, DraftHeadWeights weights, const Transformer& target, Ops& ops,
              const TransformerLimits& limits);

  HeadNetwork(const HeadNetwork&) = delete;
  HeadNetwork& operator=(const HeadNetwork&) = delete;

  void ReserveBlocks(int num_blocks) override;
  ConstRows Forward(const DraftBatch& batch) override;
  std::span<const TokenId> target_ids() const override { return weights_.target_ids; }

 private:
  const PackedMatrix& head() const {
    return weights_.lm_head != nullptr ? *weights_.lm_head : target_.weights().head();
  }
  void EmbedTokens(const ForwardRows& rows, int depth, Rows out);
  // Fused features of known tokens, outputs of drafted ones, [rows, width]; out may be any columns.
  void GatherFeatures(const ForwardRows& rows, int depth, Rows out);
  // The hidden states of the wanted rows.
  ConstRows RunLayers(const ForwardRows& rows, int depth);
  // Leaves the wanted rows' outputs in next_outputs_ and their logits in logits_.
  void Compute(const ForwardRows& rows, int depth);

  // Constant after construction.
  const DraftHeadSpec spec_;
  const DraftHeadWeights weights_;
  const Transformer& target_;
  Ops& ops_;
  const int hidden_size_;

  KeptPasses kept_;  // of later levels, by whether outputs are swapped
  DecoderStack stack_;
  AlignedBuffer outputs_, next_outputs_;  // of the logits rows of the last forward
  bool are_outputs_swapped_ = false;
  int num_outputs_ = 0;

  // Scratch of one forward.
  AlignedBuffer features_, combined_, hidden_, normed_, logits_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_HEAD_NETWORK_H_
