#include "cpp/model/transformer.h"

#include <algorithm>
#include <utility>

#include "cpp/model/rope.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// The MLP's wide activations are made for this many rows at a time, so that they stay in cache.
constexpr int kMlpRows = 256;

Rows RowsOf(const AlignedBuffer& buffer, int rows, int cols) {
  return {buffer.as<float>(), rows, cols};
}

Rows Slice(const Rows& rows, int begin, int count) {
  return {rows.row(begin), count, rows.cols, rows.stride};
}

const float* DataOrNull(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

AlignedBuffer MakeScratch(int rows, int cols) {
  return AlignedBuffer(sizeof(float) * static_cast<std::size_t>(rows) * cols);
}

}  // namespace

KvLayout MakeKvLayout(const ModelSpec& spec, DType dtype, int block_size) {
  KvLayout layout;
  layout.num_layers = spec.num_layers;
  layout.num_kv_heads = spec.num_kv_heads;
  layout.head_dim = spec.head_dim;
  layout.block_size = block_size;
  layout.element_bytes = static_cast<int>(SizeOf(dtype));
  return layout;
}

Transformer::Transformer(ModelSpec spec, ModelWeights weights, Ops& ops,
                         const TransformerLimits& limits)
    : spec_(std::move(spec)),
      weights_(std::move(weights)),
      ops_(ops),
      limits_(limits),
      q_size_(spec_.num_heads * spec_.head_dim),
      kv_size_(spec_.num_kv_heads * spec_.head_dim),
      cache_(ops.MakeKvCache(MakeKvLayout(spec_, weights_.dtype, limits.block_size),
                             limits.num_blocks)) {
  FORERUN_CHECK(limits_.max_rows > 0 && limits_.max_model_len > 0);
  for (const RopeSpec& rope : spec_.ropes) {
    rope_tables_.push_back(MakeRopeTable(rope, spec_.head_dim, limits_.max_model_len));
  }
  positions_.reserve(limits_.max_rows);
  selected_sequences_.reserve(limits_.max_rows);
  hidden_ = MakeScratch(limits_.max_rows, spec_.hidden_size);
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

ConstRows Transformer::Forward(const ForwardBatch& batch) {
  CheckBatch(batch);
  SetPositions(batch);
  const int num_rows = static_cast<int>(batch.tokens.size());
  const Rows hidden = RowsOf(hidden_, num_rows, spec_.hidden_size);
  ops_.Embed(batch.tokens, *weights_.embedding, spec_.embedding_scale, hidden);

  ActiveRows active = {hidden, {}, batch.sequences};
  for (int layer = 0; layer < spec_.num_layers; ++layer) {
    active.query = StoreKvAndMakeQuery(layer, hidden, batch);
    // Behind the last layer's keys and values only the rows that are asked for go on.
    if (layer == spec_.num_layers - 1) active = SelectLogitsRows(active, batch);
    if (active.hidden.rows == 0) break;
    Attend(layer, active);
    RunMlp(layer, active.hidden);
  }
  return ComputeLogits(active.hidden);
}

void Transformer::CheckBatch(const ForwardBatch& batch) const {
  const int num_rows = static_cast<int>(batch.tokens.size());
  FORERUN_CHECK(num_rows <= limits_.max_rows, std::to_string(num_rows));
  for (TokenId token : batch.tokens) {
    FORERUN_CHECK(token >= 0 && token < spec_.vocab_size, std::to_string(token));
  }
  int row = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    FORERUN_CHECK(sequence.row_begin == row && sequence.num_rows >= 0 && sequence.num_context >= 0);
    const std::int64_t end = std::int64_t{sequence.num_context} + sequence.num_rows;
    FORERUN_CHECK(end <= limits_.max_model_len, std::to_string(end));
    FORERUN_CHECK(sequence.IsTreeSound(), "a draft tree does not fit its rows");
    FORERUN_CHECK(end <=
                  static_cast<std::int64_t>(sequence.block_table.size()) * limits_.block_size);
    row += sequence.num_rows;
  }
  FORERUN_CHECK(row == num_rows, "sequences must cover the rows");
  int last = -1;
  for (std::int32_t logits_row : batch.logits_rows) {
    FORERUN_CHECK(logits_row > last && logits_row < num_rows, "logits rows must ascend");
    last = logits_row;
  }
}

void Transformer::SetPositions(const ForwardBatch& batch) {
  positions_.clear();
  for (const SequenceRows& sequence : batch.sequences) {
    for (int i = 0; i < sequence.num_rows; ++i) {
      positions_.push_back(sequence.PositionOf(sequence.num_context + i));
    }
  }
}

ConstRows Transformer::StoreKvAndMakeQuery(int layer, ConstRows hidden, const ForwardBatch& batch) {
  const LayerWeights& weights = weights_.layers[layer];
  const Rows normed = RowsOf(normed_, hidden.rows, spec_.hidden_size);
  const Rows qkv = RowsOf(qkv_, hidden.rows, q_size_ + 2 * kv_size_);
  Normalize(hidden, weights.attention_norm, normed);
  ops_.MatMul(normed, *weights.qkv, DataOrNull(weights.qkv_bias), /*accumulate=*/false, qkv);

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
  ops_.StoreKv(key, value, batch.sequences, layer, *cache_);
  return query;
}

Transformer::ActiveRows Transformer::SelectLogitsRows(const ActiveRows& all,
                                                      const ForwardBatch& batch) {
  const int num_selected = static_cast<int>(batch.logits_rows.size());
  if (num_selected == all.hidden.rows) return all;

  selected_sequences_.clear();
  auto next = batch.logits_rows.begin();
  for (const SequenceRows& sequence : batch.sequences) {
    const int end = sequence.row_begin + sequence.num_rows;
    // Every run of neighbours stays together, as a sequence with more context.
    while (next != batch.logits_rows.end() && *next < end) {
      const int first = *next;
      int count = 0;
      while (next != batch.logits_rows.end() && *next < end && *next == first + count) {
        ++next;
        ++count;
      }
      const int row_begin = static_cast<int>(next - batch.logits_rows.begin()) - count;
      selected_sequences_.push_back({row_begin, count,
                                     sequence.num_context + first - sequence.row_begin,
                                     sequence.block_table, sequence.tree});
    }
  }
  ActiveRows selected = {
      RowsOf(selected_hidden_, num_selected, spec_.hidden_size), {}, selected_sequences_};
  if (num_selected == 0) return selected;
  const Rows query = RowsOf(selected_query_, num_selected, q_size_);
  ops_.GatherRows(all.hidden, batch.logits_rows, selected.hidden);
  ops_.GatherRows(all.query, batch.logits_rows, query);
  selected.query = query;
  return selected;
}

void Transformer::Attend(int layer, const ActiveRows& active) {
  const LayerWeights& weights = weights_.layers[layer];
  AttentionShape shape;
  shape.num_heads = spec_.num_heads;
  shape.num_kv_heads = spec_.num_kv_heads;
  shape.head_dim = spec_.head_dim;
  shape.scale = spec_.attention_scale;
  shape.soft_cap = spec_.attention_soft_cap;
  shape.sliding_window = spec_.layers[layer].sliding_window;

  const Rows attended = RowsOf(attended_, active.hidden.rows, q_size_);
  ops_.Attention(active.query, *cache_, layer, shape, active.sequences, attended);
  AddProjection(attended, *weights.attention_output, weights.attention_output_bias,
                weights.post_attention_norm, active.hidden);
}

void Transformer::RunMlp(int layer, Rows hidden) {
  const LayerWeights& weights = weights_.layers[layer];
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

void Transformer::AddProjection(ConstRows x, const PackedMatrix& weight,
                                const std::vector<float>& bias, const std::vector<float>& post_norm,
                                Rows hidden) {
  if (post_norm.empty()) {
    ops_.MatMul(x, weight, DataOrNull(bias), /*accumulate=*/true, hidden);
    return;
  }
  const Rows projected = RowsOf(projected_, x.rows, spec_.hidden_size);
  ops_.MatMul(x, weight, DataOrNull(bias), /*accumulate=*/false, projected);
  Normalize(projected, post_norm, projected);
  ops_.Add(projected, hidden);
}

void Transformer::Normalize(ConstRows x, const std::vector<float>& weight, Rows out) {
  ops_.RmsNorm(x, weight.data(), spec_.hidden_size, spec_.rms_norm_eps, out);
}

ConstRows Transformer::ComputeLogits(ConstRows hidden) {
  if (hidden.rows == 0) return RowsOf(logits_, 0, spec_.vocab_size);
  logits_.Grow(sizeof(float) * static_cast<std::size_t>(hidden.rows) * spec_.vocab_size);
  const Rows logits = RowsOf(logits_, hidden.rows, spec_.vocab_size);
  const Rows normed = RowsOf(normed_, hidden.rows, spec_.hidden_size);
  Normalize(hidden, weights_.final_norm, normed);
  ops_.MatMul(normed, weights_.head(), nullptr, /*accumulate=*/false, logits);
  if (spec_.final_soft_cap > 0.0f) ops_.SoftCap(logits, spec_.final_soft_cap);
  return logits;
}

}  // namespace forerun
