#include "cpp/model/decoder_stack.h"

#include <algorithm>
#include <string>

#include "cpp/model/rope.h"
#include "cpp/util/check.h"

namespace forerun {
AlignedBuffer MakeScratch(Ops& ops, int rows, int cols) {
  return {ops.memory(), sizeof(float) * static_cast<std::size_t>(rows) * cols};
}

Rows RowsOf(const AlignedBuffer& buffer, int rows, int cols) {
  FORERUN_CHECK(sizeof(float) * rows * cols <= buffer.num_bytes(),
                std::to_string(rows) + " rows in scratch for fewer");
  return {buffer.as<float>(), rows, cols};
}

KvLayout MakeKvLayout(const ModelSpec& spec, DType dtype, int block_size) {
  KvLayout layout;
  layout.num_layers = spec.num_layers;
  layout.num_kv_heads = spec.num_kv_heads;
  layout.head_dim = spec.head_dim;
  layout.block_size = block_size;
  layout.element_bytes = static_cast<int>(SizeOf(dtype));
  return layout;
}

std::int64_t ScratchBytesPerRow(const ModelSpec& spec) {
  const std::int64_t query = std::int64_t{spec.num_heads} * spec.head_dim;
  const std::int64_t kv = std::int64_t{spec.num_kv_heads} * spec.head_dim;
  return static_cast<std::int64_t>(sizeof(float)) *
         (6 * std::int64_t{spec.hidden_size} + 3 * query + 2 * kv);
}

DecoderStack::DecoderStack(const ModelSpec& spec, std::span<const LayerWeights> layers, Ops& ops,
                           const TransformerLimits& limits, int first_position)
    : spec_(spec),
      layers_(layers),
      ops_(ops),
      limits_(limits),
      first_position_(first_position),
      q_size_(spec_.num_heads * spec_.head_dim),
      kv_size_(spec_.num_kv_heads * spec_.head_dim),
      cache_(ops.MakeKvCache(MakeKvLayout(spec_, limits.kv_dtype, limits.block_size),
                             limits.num_blocks)) {
  FORERUN_CHECK(limits_.max_rows > 0 && limits_.max_model_len > 0);
  FORERUN_CHECK(std::ssize(layers_) == spec_.num_layers, "weights for every layer");
  for (const RopeSpec& rope : spec_.ropes) {
    rope_tables_.emplace_back(ops.memory(),
                              MakeRopeTable(rope, spec_.head_dim, limits_.max_model_len));
  }
  int max_inputs = std::max(spec_.hidden_size, q_size_);
  for (const LayerWeights& layer : layers_) {
    max_inputs = std::max(max_inputs, layer.qkv->num_inputs());
  }
  const int max_sequences = limits_.max_sequences > 0 ? limits_.max_sequences : limits_.max_rows;
  ops.Reserve({limits_.max_rows, max_inputs, spec_.intermediate_size, max_sequences,
               limits_.max_model_len, spec_.num_heads, kv_layout()});
  qkv_ = MakeScratch(ops, limits_.max_rows, q_size_ + 2 * kv_size_);
  attended_ = MakeScratch(ops, limits_.max_rows, q_size_);
  if (spec_.post_norms) projected_ = MakeScratch(ops, limits_.max_rows, spec_.hidden_size);
  selected_hidden_ = MakeScratch(ops, limits_.max_logits_rows, spec_.hidden_size);
  selected_query_ = MakeScratch(ops, limits_.max_logits_rows, q_size_);
}

void DecoderStack::ReserveBlocks(int num_blocks) {
  const KvLayout layout = kv_layout();
  cache_.reset();
  cache_ = ops_.MakeKvCache(layout, num_blocks);
}

const ForwardRows& DecoderStack::Begin(ForwardData data) {
  const auto num_rows = std::ssize(data.tokens);
  FORERUN_CHECK(num_rows <= limits_.max_rows, std::to_string(num_rows));
  data.cache = cache_.get();
  data.num_heads = spec_.num_heads;
  rows_ = &ops_.Begin(data);
  for (const SequenceRows& sequence : data.sequences) {
    FORERUN_CHECK(sequence.num_context >= first_position_);
    const std::int64_t end = std::int64_t{sequence.num_context} + sequence.num_rows;
    FORERUN_CHECK(end <= limits_.max_model_len, std::to_string(end));
  }
  return *rows_;
}

void DecoderStack::RunLayer(int layer, Rows hidden, std::optional<ConstRows> attention_input) {
  const ConstRows query = StoreKvAndMakeQuery(layer, hidden, attention_input);
  Attend(layer, query, RowSet::kAll, hidden);
  RunMlp(layer, hidden);
}

Rows DecoderStack::RunLastLayer(int layer, Rows hidden, std::optional<ConstRows> attention_input) {
  const int num_wanted = static_cast<int>(rows_->indices(RowIndices::kWanted).size());
  if (num_wanted == hidden.rows) {
    RunLayer(layer, hidden, attention_input);
    return hidden;
  }
  const ConstRows query = StoreKvAndMakeQuery(layer, hidden, attention_input);
  const Rows selected = RowsOf(selected_hidden_, num_wanted, spec_.hidden_size);
  if (num_wanted == 0) return selected;
  const Rows selected_query = RowsOf(selected_query_, num_wanted, q_size_);
  ops_.GatherRows(hidden, *rows_, RowIndices::kWanted, selected);
  ops_.GatherRows(query, *rows_, RowIndices::kWanted, selected_query);
  Attend(layer, selected_query, RowSet::kWanted, selected);
  RunMlp(layer, selected);
  return selected;
}

ConstRows DecoderStack::StoreKvAndMakeQuery(int layer, ConstRows hidden,
                                            const std::optional<ConstRows>& attention_input) {
  const LayerWeights& weights = layers_[layer];
  const Rows qkv = RowsOf(qkv_, hidden.rows, q_size_ + 2 * kv_size_);
  const float* bias = weights.qkv_bias.data();
  if (attention_input) {
    ops_.MatMul(*attention_input, *weights.qkv, bias, /*accumulate=*/false, qkv);
  } else {
    ops_.NormMatMul(hidden, NormOf(weights.attention_norm), *weights.qkv, bias, qkv);
  }
  ops_.RotateAndStore(qkv, {weights.q_norm.data(), weights.k_norm.data(), spec_.rms_norm_eps},
                      *rows_, rope_tables_[spec_.layers[layer].rope].data(), layer);
  return qkv.Columns(0, q_size_);
}

void DecoderStack::Attend(int layer, ConstRows query, RowSet which, Rows hidden) {
  const LayerWeights& weights = layers_[layer];
  AttentionShape shape;
  shape.num_heads = spec_.num_heads;
  shape.num_kv_heads = spec_.num_kv_heads;
  shape.head_dim = spec_.head_dim;
  shape.scale = spec_.attention_scale;
  shape.soft_cap = spec_.attention_soft_cap;
  shape.sliding_window = spec_.layers[layer].sliding_window;
  shape.first_position = first_position_;

  const Rows attended = RowsOf(attended_, hidden.rows, q_size_);
  ops_.Attention(query, *rows_, which, layer, shape, attended);
  AddProjection(weights.post_attention_norm, hidden, [&](bool accumulate, Rows out) {
    ops_.MatMul(attended, *weights.attention_output, weights.attention_output_bias.data(),
                accumulate, out);
  });
}

void DecoderStack::RunMlp(int layer, Rows hidden) {
  const LayerWeights& weights = layers_[layer];
  const GatedMlp mlp = {*weights.gate_up, weights.gate_up_bias.data(), spec_.activation,
                        *weights.down, weights.down_bias.data()};
  AddProjection(weights.post_mlp_norm, hidden, [&](bool accumulate, Rows out) {
    ops_.GatedMatMul(hidden, NormOf(weights.mlp_norm), mlp, accumulate, out);
  });
}

template <typename Project>
void DecoderStack::AddProjection(const FloatVector& post_norm, Rows hidden,
                                 const Project& project) {
  if (post_norm.empty()) return project(/*accumulate=*/true, hidden);
  const Rows projected = RowsOf(projected_, hidden.rows, spec_.hidden_size);
  project(/*accumulate=*/false, projected);
  Normalize(projected, post_norm, projected);
  ops_.Add(projected, hidden);
}

}  // namespace forerun
