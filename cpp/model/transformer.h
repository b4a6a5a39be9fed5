// The forward pass of every family, driven by its ModelSpec.
#ifndef FORERUN_CPP_MODEL_TRANSFORMER_H_
#define FORERUN_CPP_MODEL_TRANSFORMER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpp/kv/layout.h"
#include "cpp/model/executor.h"
#include "cpp/model/spec.h"
#include "cpp/model/weights.h"
#include "cpp/ops/ops.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

struct TransformerLimits {
  int max_rows = 0;       // of one forward
  int max_model_len = 0;  // positions of one sequence
  int block_size = 16;
  int num_blocks = 0;
};

// The KV cache that a model needs. Keys and values are stored in the weights' dtype.
KvLayout MakeKvLayout(const ModelSpec& spec, DType dtype, int block_size);

// Owns the KV cache and all scratch memory; a forward allocates nothing, but for the logits when
// more rows ask for them than ever before. The Ops must outlive it.
class Transformer : public ModelExecutor {
 public:
  Transformer(ModelSpec spec, ModelWeights weights, Ops& ops, const TransformerLimits& limits);

  int vocab_size() const override { return spec_.vocab_size; }
  ConstRows Forward(const ForwardBatch& batch) override;
  void MoveKv(std::span<const KvMove> moves) override { ops_.MoveKv(moves, *cache_); }

  const ModelSpec& spec() const { return spec_; }
  const KvLayout& kv_layout() const { return cache_->layout(); }
  DType dtype() const { return weights_.dtype; }
  std::int64_t num_weight_bytes() const { return weights_.num_bytes(); }
  std::int64_t num_bytes_per_token() const { return weights_.num_bytes_per_token(); }

 private:
  // Rows that go through attention and the MLP of a layer, with their queries.
  struct ActiveRows {
    Rows hidden;      // [rows, hidden_size], updated in place
    ConstRows query;  // [rows, heads * head_dim]
    std::span<const SequenceRows> sequences;
  };

  void CheckBatch(const ForwardBatch& batch) const;
  void SetPositions(const ForwardBatch& batch);
  ConstRows StoreKvAndMakeQuery(int layer, ConstRows hidden, const ForwardBatch& batch);
  ActiveRows SelectLogitsRows(const ActiveRows& all, const ForwardBatch& batch);
  void Attend(int layer, const ActiveRows& active);
  void RunMlp(int layer, Rows hidden);
  // hidden += x W^T + bias, with the norm in between where there is one.
  void AddProjection(ConstRows x, const PackedMatrix& weight, const std::vector<float>& bias,
                     const std::vector<float>& post_norm, Rows hidden);
  void Normalize(ConstRows x, const std::vector<float>& weight, Rows out);
  ConstRows ComputeLogits(ConstRows hidden);

  // Constant after construction.
  const ModelSpec spec_;
  const ModelWeights weights_;
  Ops& ops_;
  const TransformerLimits limits_;
  const int q_size_, kv_size_;              // heads * head_dim, kv_heads * head_dim
  std::vector<AlignedBuffer> rope_tables_;  // per ModelSpec::ropes

  std::unique_ptr<KvCache> cache_;

  // Scratch of one forward, for limits_.max_rows rows.
  std::vector<std::int32_t> positions_;
  std::vector<SequenceRows> selected_sequences_;
  AlignedBuffer hidden_, normed_, qkv_, attended_, projected_;
  AlignedBuffer selected_hidden_, selected_query_;
  AlignedBuffer gate_up_, activated_;  // for kMlpRows rows
  AlignedBuffer logits_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_TRANSFORMER_H_
