// The forward pass of every family, driven by its ModelSpec.
#ifndef FORERUN_CPP_MODEL_TRANSFORMER_H_
#define FORERUN_CPP_MODEL_TRANSFORMER_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cpp/kv/layout.h"
#include "cpp/model/decoder_stack.h"
#include "cpp/model/executor.h"
#include "cpp/model/features.h"
#include "cpp/model/kept_passes.h"
#include "cpp/model/spec/spec.h"
#include "cpp/model/weights.h"
#include "cpp/ops/ops.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

// Owns the KV cache and all scratch memory; a forward allocates nothing. The Ops must outlive it.
// The cache may be made after all else, for what memory is left.
class Transformer : public ModelExecutor {
 public:
  Transformer(ModelSpec spec, ModelWeights weights, Ops& ops, const TransformerLimits& limits,
              const FeatureSpec& features = {});

  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  // Makes the KV cache, and the features, for this many blocks, empty.
  void ReserveBlocks(int num_blocks);
  // Beside those, for rows that fill passes up.
  int num_padding_blocks() const { return kept_.num_blocks(); }

  int vocab_size() const override { return weights_.embedding->num_outputs(); }
  int PaddedRows(int num_rows) const override;
  ConstRows Forward(const ForwardBatch& batch) override;
  bool took_usual_time() const override { return took_usual_time_; }
  void MoveKv(std::span<const KvMove> moves) override;

  const ModelSpec& spec() const { return spec_; }
  const ModelWeights& weights() const { return weights_; }
  const KvLayout& kv_layout() const { return stack_.kv_layout(); }
  // Null where no features were asked for.
  const FeatureStore* features() const { return features_ ? &*features_ : nullptr; }
  std::int64_t num_weight_bytes() const { return weights_.num_bytes(); }
  std::int64_t num_bytes_per_token() const { return weights_.num_bytes_per_token(); }

 private:
  // The normed hidden states of the rows whose logits are wanted.
  ConstRows RunLayers(const ForwardRows& rows);

  // Constant after construction.
  const ModelSpec spec_;
  const ModelWeights weights_;
  Ops& ops_;

  KeptPasses kept_;
  bool took_usual_time_ = true;
  DecoderStack stack_;
  std::optional<FeatureStore> features_;

  // Scratch of one forward.
  AlignedBuffer hidden_, normed_, wanted_;
  AlignedBuffer logits_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_TRANSFORMER_H_
