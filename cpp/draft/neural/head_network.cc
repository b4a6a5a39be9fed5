#include "cpp/draft/neural/head_network.h"

#include <algorithm>
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
      kept_(ops, limits, /*num_kinds=*/2, /*first_slot=*/1),
      stack_(spec_.layers, weights_.layers, ops, kept_.Padded(limits), /*first_position=*/1) {
  FORERUN_CHECK(target.features() != nullptr, "the target keeps no features");
  const TransformerLimits padded = kept_.Padded(limits);
  outputs_ = MakeScratch(ops, padded.max_logits_rows, hidden_size_);
  next_outputs_ = MakeScratch(ops, padded.max_logits_rows, hidden_size_);
  features_ = MakeScratch(ops, padded.max_rows, spec_.feature_size);
  combined_ = MakeScratch(ops, padded.max_rows, 2 * hidden_size_);
  hidden_ = MakeScratch(ops, padded.max_rows, hidden_size_);
  normed_ = MakeScratch(ops, padded.max_logits_rows, hidden_size_);
  logits_ = MakeScratch(ops, padded.max_logits_rows, head().num_outputs());
  ops.Reserve({padded.max_rows, std::max(2 * hidden_size_, spec_.feature_size)});
}

void HeadNetwork::ReserveBlocks(int num_blocks) {
  kept_.SetBlocks(num_blocks);
  stack_.ReserveBlocks(num_blocks + kept_.num_blocks());
}

ConstRows HeadNetwork::Forward(const DraftBatch& batch) {
  const int num_wanted = static_cast<int>(batch.logits_rows.size());
  // The first level has prompts, and zeros for first tokens.
  const int num_kept =
      batch.depth > 0 ? kept_.NumRows(static_cast<int>(batch.tokens.size()), num_wanted) : 0;
  ForwardBatch run = {batch.tokens, batch.sequences, batch.logits_rows, batch.sources,
                      batch.device_tokens};
  if (num_kept > 0) run = kept_.Pad(run, num_kept);
  const ForwardRows& rows = stack_.Begin({.tokens = run.tokens,
                                          .sequences = run.sequences,
                                          .wanted = run.logits_rows,
                                          .sources = run.sources,
                                          .device_tokens = run.device_tokens,
                                          .is_kept = num_kept > 0});
  const auto compute = [&] { Compute(rows, batch.depth); };
  if (num_kept > 0) {
    kept_.Run(are_outputs_swapped_ ? 1 : 0, compute);
  } else {
    compute();
  }
  if (num_wanted > 0) {
    std::swap(outputs_, next_outputs_);
    are_outputs_swapped_ = !are_outputs_swapped_;
    num_outputs_ = num_wanted;
  }
  return RowsOf(logits_, num_wanted, head().num_outputs());
}

void HeadNetwork::Compute(const ForwardRows& rows, int depth) {
  const ConstRows states = RunLayers(rows, depth);
  if (states.rows == 0) return;
  ConstRows normed = states;
  if (!weights_.final_norm.empty()) {
    const Rows out = RowsOf(normed_, states.rows, hidden_size_);
    stack_.Normalize(states, weights_.final_norm, out);
    normed = out;
  }
  ops_.Copy(spec_.feeds_back_normed ? normed : states,
            RowsOf(next_outputs_, states.rows, hidden_size_));
  ComputeLogits(ops_, normed, head(), {spec_.soft_cap, spec_.logit_scale}, logits_);
}

void HeadNetwork::EmbedTokens(const ForwardRows& rows, int depth, Rows out) {
  const PackedMatrix& table =
      weights_.embedding != nullptr ? *weights_.embedding : *target_.weights().embedding;
  ops_.Embed(rows, table, spec_.embedding_scale, out);
  if (!spec_.masks_first_token || depth > 0) return;
  for (const SequenceRows& sequence : rows.sequences(RowSet::kAll)) {
    if (sequence.num_context != first_slot() || sequence.num_rows == 0) continue;
    ops_.Zero(out.Slice(sequence.row_begin, 1));
  }
}

void HeadNetwork::GatherFeatures(const ForwardRows& rows, int depth, Rows out) {
  if (depth > 0) {
    ops_.GatherRows(RowsOf(outputs_, num_outputs_, hidden_size_), rows, RowIndices::kSources, out);
    return;
  }
  const ConstRows store = target_.features()->rows();
  const bool is_fused_here = spec_.kind == DraftHeadKind::kEagle3 && spec_.fuses_features;
  if (!is_fused_here) {
    ops_.GatherRows(store, rows, RowIndices::kSources, out);
    return;
  }
  const Rows features = RowsOf(features_, out.rows, spec_.feature_size);
  ops_.GatherRows(store, rows, RowIndices::kSources, features);
  for (int i = 0; i < spec_.num_feature_norms; ++i) {
    const int width = spec_.feature_size / spec_.num_feature_norms;
    const Rows part = features.Columns(i * width, width);
    ops_.RmsNorm(part, weights_.feature_norms[i].data(), width, spec_.layers.rms_norm_eps, part);
  }
  ops_.MatMul(features, *weights_.fusion, weights_.fusion_bias.data(), /*accumulate=*/false, out);
}

ConstRows HeadNetwork::RunLayers(const ForwardRows& rows, int depth) {
  const int num_rows = rows.num_rows();
  const Rows hidden = RowsOf(hidden_, num_rows, hidden_size_);
  const Rows combined = RowsOf(combined_, num_rows, 2 * hidden_size_);
  const Rows embedding = combined.Columns(spec_.hidden_first ? hidden_size_ : 0, hidden_size_);
  const Rows feature = combined.Columns(spec_.hidden_first ? 0 : hidden_size_, hidden_size_);
  EmbedTokens(rows, depth, embedding);
  if (!weights_.embedding_norm.empty()) {
    stack_.Normalize(embedding, weights_.embedding_norm, embedding);
  }
  std::optional<ConstRows> first_input;
  switch (spec_.kind) {
    case DraftHeadKind::kEagle3:
      GatherFeatures(rows, depth, hidden);
      stack_.Normalize(hidden, weights_.hidden_norm, feature);
      if (spec_.norm_before_residual) stack_.Normalize(hidden, weights_.hidden_norm, hidden);
      first_input = combined;
      break;
    case DraftHeadKind::kEagle:
      GatherFeatures(rows, depth, feature);
      ops_.MatMul(combined, *weights_.fusion, weights_.fusion_bias.data(),
                  /*accumulate=*/false, hidden);
      first_input = hidden;
      break;
    case DraftHeadKind::kMtp:
      GatherFeatures(rows, depth, feature);
      stack_.Normalize(feature, weights_.hidden_norm, feature);
      ops_.MatMul(combined, *weights_.fusion, weights_.fusion_bias.data(),
                  /*accumulate=*/false, hidden);
      break;
  }
  const int last = spec_.layers.num_layers - 1;
  for (int layer = 0; layer < last; ++layer) {
    stack_.RunLayer(layer, hidden, layer == 0 ? first_input : std::nullopt);
  }
  return stack_.RunLastLayer(last, hidden, last == 0 ? first_input : std::nullopt);
}

}  // namespace forerun
