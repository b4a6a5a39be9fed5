#include "cpp/draft/neural/head_network.h"

#include <cstring>
#include <numeric>
#include <utility>

#include "cpp/model/logits.h"
#include "cpp/util/check.h"

namespace forerun {

HeadNetwork::HeadNetwork(DraftHeadSpec spec, DraftHeadWeights weights, const Transformer& target,
                         Ops& ops, const TransformerLimits& limits)
    : spec_(std::move(spec)),
      weights_(std::move(weights)),
      target_(target),
      ops_(ops),
      hidden_size_(spec_.layers.hidden_size),
      stack_(spec_.layers, weights_.layers, target.dtype(), ops, limits, /*first_position=*/1),
      outputs_(MakeScratch(limits.max_rows, hidden_size_)),
      next_outputs_(MakeScratch(limits.max_rows, hidden_size_)),
      features_(MakeScratch(limits.max_rows, spec_.feature_size)),
      combined_(MakeScratch(limits.max_rows, 2 * hidden_size_)),
      hidden_(MakeScratch(limits.max_rows, hidden_size_)),
      normed_(MakeScratch(limits.max_rows, hidden_size_)),
      zero_(MakeScratch(1, hidden_size_)),
      all_rows_(limits.max_rows) {
  FORERUN_CHECK(target.features() != nullptr, "the target keeps no features");
  std::memset(zero_.as<float>(), 0, sizeof(float) * hidden_size_);
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
}

ConstRows HeadNetwork::Forward(const DraftBatch& batch) {
  const int num_rows = static_cast<int>(batch.tokens.size());
  stack_.CheckSequences(batch.sequences, num_rows);
  stack_.Begin(batch.sequences);
  const ConstRows states = RunLayers(batch);
  if (states.rows == 0) return RowsOf(logits_, 0, spec_.layers.vocab_size);

  ConstRows normed = states;
  if (!weights_.final_norm.empty()) {
    const Rows out = RowsOf(normed_, states.rows, hidden_size_);
    stack_.Normalize(states, weights_.final_norm, out);
    normed = out;
  }
  ops_.GatherRows(spec_.feeds_back_normed ? normed : states,
                  std::span(all_rows_).first(states.rows),
                  RowsOf(next_outputs_, states.rows, hidden_size_));
  std::swap(outputs_, next_outputs_);
  num_outputs_ = states.rows;
  const PackedMatrix& head =
      weights_.lm_head != nullptr ? *weights_.lm_head : target_.weights().head();
  return ComputeLogits(ops_, normed, head, {spec_.soft_cap, spec_.logit_scale}, logits_);
}

void HeadNetwork::EmbedTokens(const DraftBatch& batch, Rows out) {
  const PackedMatrix& table =
      weights_.embedding != nullptr ? *weights_.embedding : *target_.weights().embedding;
  ops_.Embed(batch.tokens, table, spec_.embedding_scale, out);
  if (!spec_.masks_first_token) return;
  for (const SequenceRows& sequence : batch.sequences) {
    if (sequence.num_context != first_slot() || sequence.num_rows == 0) continue;
    const std::int32_t row = sequence.row_begin;
    ops_.ScatterRows(RowsOf(zero_, 1, hidden_size_), {&row, 1}, out);
  }
}

void HeadNetwork::GatherFeatures(const DraftBatch& batch, Rows out) {
  if (batch.depth > 0) {
    ops_.GatherRows(RowsOf(outputs_, num_outputs_, hidden_size_), batch.sources, out);
    return;
  }
  const ConstRows store = target_.features()->rows();
  const bool is_fused_here = spec_.kind == DraftHeadKind::kEagle3 && spec_.fuses_features;
  if (!is_fused_here) {
    ops_.GatherRows(store, batch.sources, out);
    return;
  }
  const Rows features = RowsOf(features_, out.rows, spec_.feature_size);
  ops_.GatherRows(store, batch.sources, features);
  for (int i = 0; i < spec_.num_feature_norms; ++i) {
    const int width = spec_.feature_size / spec_.num_feature_norms;
    const Rows part = features.Columns(i * width, width);
    ops_.RmsNorm(part, weights_.feature_norms[i].data(), width, spec_.layers.rms_norm_eps, part);
  }
  ops_.MatMul(features, *weights_.fusion, DataOrNull(weights_.fusion_bias), /*accumulate=*/false,
              out);
}

ConstRows HeadNetwork::RunLayers(const DraftBatch& batch) {
  const int num_rows = static_cast<int>(batch.tokens.size());
  const Rows hidden = RowsOf(hidden_, num_rows, hidden_size_);
  const Rows combined = RowsOf(combined_, num_rows, 2 * hidden_size_);
  const Rows embedding = combined.Columns(spec_.hidden_first ? hidden_size_ : 0, hidden_size_);
  const Rows feature = combined.Columns(spec_.hidden_first ? 0 : hidden_size_, hidden_size_);
  EmbedTokens(batch, embedding);
  if (!weights_.embedding_norm.empty()) {
    stack_.Normalize(embedding, weights_.embedding_norm, embedding);
  }
  std::optional<ConstRows> first_input;
  switch (spec_.kind) {
    case DraftHeadKind::kEagle3:
      GatherFeatures(batch, hidden);
      stack_.Normalize(hidden, weights_.hidden_norm, feature);
      if (spec_.norm_before_residual) stack_.Normalize(hidden, weights_.hidden_norm, hidden);
      first_input = combined;
      break;
    case DraftHeadKind::kEagle:
      GatherFeatures(batch, feature);
      ops_.MatMul(combined, *weights_.fusion, DataOrNull(weights_.fusion_bias),
                  /*accumulate=*/false, hidden);
      first_input = hidden;
      break;
    case DraftHeadKind::kMtp:
      GatherFeatures(batch, feature);
      stack_.Normalize(feature, weights_.hidden_norm, feature);
      ops_.MatMul(combined, *weights_.fusion, DataOrNull(weights_.fusion_bias),
                  /*accumulate=*/false, hidden);
      break;
  }
  const int last = spec_.layers.num_layers - 1;
  for (int layer = 0; layer < last; ++layer) {
    stack_.RunLayer(layer, hidden, layer == 0 ? first_input : std::nullopt);
  }
  return stack_.RunLastLayer(last, hidden, batch.logits_rows,
                             last == 0 ? first_input : std::nullopt);
}

}  // namespace forerun
