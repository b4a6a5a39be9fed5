// The decoder layers that all families have, driven by a ModelSpec: attention over paged keys and
// values, then the MLP, each added to the hidden states.
#ifndef FORERUN_CPP_MODEL_DECODER_STACK_H_
#define FORERUN_CPP_MODEL_DECODER_STACK_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cpp/kv/layout.h"
#include "cpp/model/spec/spec.h"
#include "cpp/model/weights.h"
#include "cpp/ops/ops.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

struct TransformerLimits {
  int max_rows = 0;       // of one forward
  int max_model_len = 0;  // positions of one sequence
  int block_size = 16;
  int num_blocks = 0;       // 0: ReserveBlocks says later
  int max_logits_rows = 0;  // of one forward
  DType kv_dtype = DType::kFloat32;
  int max_sequences = 0;      // of one forward; 0: as many as rows
  bool keeps_passes = false;  // runs them from PassGraphs, where the Ops has them
};

// The KV cache that the layers need.
KvLayout MakeKvLayout(const ModelSpec& spec, DType dtype, int block_size);

// Of the hidden states and what is made of them, in a DecoderStack and in its Transformer.
std::int64_t ScratchBytesPerRow(const ModelSpec& spec);

// Owns the KV cache and all scratch memory; a forward allocates nothing. The spec, the weights and
// the Ops must outlive it.
class DecoderStack {
 public:
  // Positions before `first_position` have no keys and values: no row is ever one of them.
  DecoderStack(const ModelSpec& spec, std::span<const LayerWeights> layers, Ops& ops,
               const TransformerLimits& limits, int first_position = 0);

  // Makes the KV cache for this many blocks, empty. REQUIRES: no forward pass is under way.
  void ReserveBlocks(int num_blocks);

  // Starts a forward pass, with the cache's keys and values as data.cache. Throws InternalError
  // unless the sequences cover the rows within the limits.
  const ForwardRows& Begin(ForwardData data);

  // Runs a layer over all rows of `hidden`, in place. `attention_input`, where given, is taken as
  // it is in place of the normed hidden states.
  void RunLayer(int layer, Rows hidden, std::optional<ConstRows> attention_input = {});

  // The same of the last layer that is to run: all rows leave keys and values, only the wanted ones
  // go on. Returns their hidden states, valid until the next call.
  Rows RunLastLayer(int layer, Rows hidden, std::optional<ConstRows> attention_input = {});

  void MoveKv(std::span<const KvMove> moves) { ops_.MoveKv(moves, *cache_); }
  const KvLayout& kv_layout() const { return cache_->layout(); }

  // out = the norm of x's rows.
  void Normalize(ConstRows x, const FloatVector& weight, Rows out) const {
    ops_.RmsNorm(x, weight.data(), spec_.hidden_size, spec_.rms_norm_eps, out);
  }

 private:
  NormWeight NormOf(const FloatVector& weight) const { return {weight.data(), spec_.rms_norm_eps}; }
  ConstRows StoreKvAndMakeQuery(int layer, ConstRows hidden,
                                const std::optional<ConstRows>& attention_input);
  void Attend(int layer, ConstRows query, RowSet which, Rows hidden);
  void RunMlp(int layer, Rows hidden);
  // Calls project(accumulate, out) so that hidden += its product, with the norm in between where
  // there is one.
  template <typename Project>
  void AddProjection(const FloatVector& post_norm, Rows hidden, const Project& project);

  // Constant after construction.
  const ModelSpec& spec_;
  const std::span<const LayerWeights> layers_;
  Ops& ops_;
  const TransformerLimits limits_;
  const int first_position_;
  const int q_size_, kv_size_;            // heads * head_dim, kv_heads * head_dim
  std::vector<FloatVector> rope_tables_;  // per ModelSpec::ropes

  std::unique_ptr<KvCache> cache_;

  const ForwardRows* rows_ = nullptr;  // of this forward

  // Scratch of one forward: for limits_.max_rows rows, then for those with logits.
  AlignedBuffer qkv_, attended_, projected_;
  AlignedBuffer selected_hidden_, selected_query_;
};

// Room for float rows in the memory of `ops`.
AlignedBuffer MakeScratch(Ops& ops, int rows, int cols);
// Rows at the start of a buffer. Throws InternalError if it is too small for them.
Rows RowsOf(const AlignedBuffer& buffer, int rows, int cols);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_DECODER_STACK_H_
