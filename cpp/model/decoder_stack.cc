#include "cpp/model/decoder_stack.h"

#include <algorithm>
#include <string>

#include "cpp/model/rope.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// The MLP's wide activations are made for this many rows at a time, so that they stay in cache.
constexpr int kMlpRows = 256;

Rows Slice(const Rows& rows, int begin, int count) {
  return {rows.row(begin), count, rows.cols, rows.stride};
}

}  // namespace

AlignedBuffer MakeScratch(int rows, int cols) {
  return AlignedBuffer(sizeof(float) * static_cast<std::size_t>(rows) * cols);
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

DecoderStack::DecoderStack(const ModelSpec& spec, std::span<const LayerWeights> layers, DType dtype,
                           Ops& ops, const TransformerLimits& limits, int first_position)
    : spec_(spec),
      layers_(layers),
      ops_(ops),
      limits_(limits),
      first_position_(first_position),
      q_size_(spec_.num_heads * spec_.head_dim),
      kv_size_(spec_.num_kv_heads * spec_.head_dim),
      cache_(ops.MakeKvCache(MakeKvLayout(spec_, dtype, limits.block_size), limits.num_blocks)) {
  FORERUN_CHECK(limits_.max_rows > 0 && limits_.max_model_len > 0);
  FORERUN_CHECK(std::ssize(layers_) == spec_.num_layers, "weights for every layer");
  for (const RopeSpec& rope : spec_.ropes) {
    rope_tables_.push_back(MakeRopeTable(rope, spec_.head_dim, limits_.max_model_len));
  }
  positions_.reserve(limits_.max_rows);
  selected_sequences_.reserve(limits_.max_rows);
  normed_ = MakeScratch(limits_.max_rows, spec_.hidden_size);
  qkv_ = MakeScratch(limits_.max_rows, q_size_ + 2 * kv_size_);
  attended_ = MakeScratch(limits_.max_rows, q_size_);
  if (spec_.post_norms) projected_ = MakeScratch(limits_.max_rows, spec_.hidden_size);
  selected_hidden_ = MakeScratch(limits_.max_rows, spec_.hidden_size);
  selected_query_ = MakeScratch(limits_.max_rows, q_size_);
  const int mlp_rows = std::min(limits_.max_rows, kMlpRows);
  gate_up_ = MakeScratch(mlp_rows, 2 * spec_.intermediate_size);
  activated_ = MakeScratch(mlp_rows, spec_.intermediate_size);
}

void DecoderStack::CheckSequences(std::span<const SequenceRows> sequences, int num_rows) const {
  FORERUN_CHECK(num_rows <= limits_.max_rows, std::to_string(num_rows));
  forerun::CheckSequences(sequences, *cache_, num_rows);
  int row = 0;
  for (const SequenceRows& sequence : sequences) {
    FORERUN_CHECK(sequence.row_begin == row && sequence.num_context >= first_position_);
    const std::int64_t end = std::int64_t{sequence.num_context} + sequence.num_rows;
    FORERUN_CHECK(end <= limits_.max_model_len, std::to_string(end));
    row += sequence.num_rows;
  }
  FORERUN_CHECK(row == num_rows, "sequences must cover the rows");
}

void DecoderStack::Begin(std::span<const SequenceRows> sequences) {
  sequences_ = sequences;
  positions_.clear();
  for (const SequenceRows& sequence : sequences) {
    for (int i = 0; i < sequence.num_rows; ++i) {
      positions_.push_back(sequence.PositionOf(sequence.num_context + i));
    }
  }
}

void DecoderStack::RunLayer(int layer, Rows hidden, std::optional<ConstRows> attention_input) {
  const ConstRows query = StoreKvAndMakeQuery(layer, hidden, attention_input);
  Attend(layer, query, sequences_, hidden);
  RunMlp(layer, hidden);
}

Rows DecoderStack::RunLastLayer(int layer, Rows hidden, std::span<const std::int32_t> wanted,
                                std::optional<ConstRows> attention_input) {
  const int num_wanted = static_cast<int>(wanted.size());
  if (num_wanted == hidden.rows) {
    RunLayer(layer, hidden, attention_input);
    return hidden;
  }
  const ConstRows query = StoreKvAndMakeQuery(layer, hidden, attention_input);
  const Rows selected = RowsOf(selected_hidden_, num_wanted, spec_.hidden_size);
  if (num_wanted == 0) return selected;
  const Rows selected_query = RowsOf(selected_query_, num_wanted, q_size_);
  ops_.GatherRows(hidden, wanted, selected);
  ops_.GatherRows(query, wanted, selected_query);
  Attend(layer, selected_query, Select(wanted), selected);
  RunMlp(layer, selected);
  return selected;
}

ConstRows DecoderStack::StoreKvAndMakeQuery(int layer, ConstRows hidden,
                                            const std::optional<ConstRows>& attention_input) {
  const LayerWeights& weights = layers_[layer];
  const Rows qkv = RowsOf(qkv_, hidden.rows, q_size_ + 2 * kv_size_);
  ConstRows input = RowsOf(normed_, hidden.rows, spec_.hidden_size);
  if (attention_input) {
    input = *attention_input;
  } else {
    Normalize(hidden, weights.attention_norm, RowsOf(normed_, hidden.rows, spec_.hidden_size));
  }
  ops_.MatMul(input, *weights.qkv, DataOrNull(weights.qkv_bias), /*accumulate=*/false, qkv);

  const Rows query = qkv.Columns(0, q_size_);
  const Rows key = qkv.Columns(q_size_, kv_size_);
  const Rows value = qkv.Columns(q_size_ + kv_size_, kv_size_);
  if (spec_.qk_norm) {
    ops_.RmsNorm(query, weights.q_norm.data(), spec_.head_dim, spec_.rms_norm_eps, query);
    ops_.RmsNorm(key, weights.k_norm.data(), spec_.head_dim, spec_.rms_norm_eps, key);
  }
  // Query and key heads lie side by side and turn alike.
  const Rows query_and_key = qkv.Columns(0, q_size_ + kv_size_);
  const float* cos_sin = rope_tables_[spec_.layers[layer].rope].as<float>();
  ops_.Rope(query_and_key, spec_.head_dim, positions_, cos_sin);
  ops_.StoreKv(key, value, sequences_, layer, *cache_);
  return query;
}

std::span<const SequenceRows> DecoderStack::Select(std::span<const std::int32_t> wanted) {
  selected_sequences_.clear();
  auto next = wanted.begin();
  for (const SequenceRows& sequence : sequences_) {
    const int end = sequence.row_begin + sequence.num_rows;
    // Every run of neighbours stays together, as a sequence with more context.
    while (next != wanted.end() && *next < end) {
      const int first = *next;
      int count = 0;
      while (next != wanted.end() && *next < end && *next == first + count) {
        ++next;
        ++count;
      }
      const int row_begin = static_cast<int>(next - wanted.begin()) - count;
      selected_sequences_.push_back({row_begin, count,
                                     sequence.num_context + first - sequence.row_begin,
                                     sequence.block_table, sequence.tree});
    }
  }
  return selected_sequences_;
}

void DecoderStack::Attend(int layer, ConstRows query, std::span<const SequenceRows> sequences,
                          Rows hidden) {
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
  ops_.Attention(query, *cache_, layer, shape, sequences, attended);
  AddProjection(attended, *weights.attention_output, weights.attention_output_bias,
                weights.post_attention_norm, hidden);
}

void DecoderStack::RunMlp(int layer, Rows hidden) {
  const LayerWeights& weights = layers_[layer];
  for (int begin = 0; begin < hidden.rows; begin += kMlpRows) {
    const int num_rows = std::min(kMlpRows, hidden.rows - begin);
    const Rows slice = Slice(hidden, begin, num_rows);
    const Rows normed = RowsOf(normed_, num_rows, spec_.hidden_size);
    const Rows gate_up = RowsOf(gate_up_, num_rows, 2 * spec_.intermediate_size);
    const Rows activated = RowsOf(activated_, num_rows, spec_.intermediate_size);
    Normalize(slice, weights.mlp_norm, normed);
    ops_.MatMul(normed, *weights.gate_up, DataOrNull(weights.gate_up_bias), /*accumulate=*/false,
                gate_up);
    ops_.GatedActivation(gate_up, spec_.activation, activated);
    AddProjection(activated, *weights.down, weights.down_bias, weights.post_mlp_norm, slice);
  }
}

void DecoderStack::AddProjection(ConstRows x, const PackedMatrix& weight,
                                 const std::vector<float>& bias,
                                 const std::vector<float>& post_norm, Rows hidden) {
  if (post_norm.empty()) {
    ops_.MatMul(x, weight, DataOrNull(bias), /*accumulate=*/true, hidden);
    return;
  }
  const Rows projected = RowsOf(projected_, x.rows, spec_.hidden_size);
  ops_.MatMul(x, weight, DataOrNull(bias), /*accumulate=*/false, projected);
  Normalize(projected, post_norm, projected);
  ops_.Add(projected, hidden);
}

}  // namespace forerun
