#include "cpp/model/transformer.h"

#include <string>
#include <utility>

#include "cpp/model/logits.h"
#include "cpp/util/check.h"

namespace forerun {

std::optional<Transformer::KeptPasses> Transformer::MakeKeptPasses(
    Ops& ops, const TransformerLimits& limits) {
  std::unique_ptr<PassGraphs> graphs = limits.keeps_passes ? ops.MakePassGraphs() : nullptr;
  if (graphs == nullptr) return {};
  KeptPasses kept = {
      std::move(graphs),
      {limits.max_rows, PassGraphs::kMostPadding, limits.block_size, limits.max_model_len}};
  kept.padded.SetBlocks(limits.num_blocks);
  return kept;
}

TransformerLimits Transformer::Padded(TransformerLimits limits) const {
  if (!kept_) return limits;
  if (limits.max_sequences > 0) limits.max_sequences += PassGraphs::kMostPadding;
  limits.max_rows += PassGraphs::kMostPadding;
  limits.max_logits_rows += PassGraphs::kMostPadding;
  limits.num_blocks += num_padding_blocks();
  return limits;
}

Transformer::Transformer(ModelSpec spec, ModelWeights weights, Ops& ops,
                         const TransformerLimits& limits, const FeatureSpec& features)
    : spec_(std::move(spec)),
      weights_(std::move(weights)),
      ops_(ops),
      kept_(MakeKeptPasses(ops, limits)),
      stack_(spec_, weights_.layers, ops, Padded(limits)) {
  const TransformerLimits padded = Padded(limits);
  hidden_ = MakeScratch(ops, padded.max_rows, spec_.hidden_size);
  normed_ = MakeScratch(ops, padded.max_rows, spec_.hidden_size);
  logits_ = MakeScratch(ops, padded.max_logits_rows, vocab_size());
  if (features.empty()) return;
  for (int layer : features.aux_layers) {
    FORERUN_CHECK(layer >= 0 && layer <= spec_.num_layers, std::to_string(layer));
  }
  features_.emplace(features, spec_.hidden_size, padded.num_blocks, limits.block_size, ops);
  wanted_ = MakeScratch(ops, padded.max_logits_rows, spec_.hidden_size);
}

void Transformer::ReserveBlocks(int num_blocks) {
  if (kept_) {
    kept_->graphs = ops_.MakePassGraphs();  // those that were kept have read the old blocks
    kept_->padded.SetBlocks(num_blocks);
  }
  stack_.ReserveBlocks(num_blocks + num_padding_blocks());
  if (features_) features_->ReserveBlocks(num_blocks + num_padding_blocks());
}

int Transformer::PaddedRows(int num_rows) const {
  const int num_kept = kept_ ? kept_->graphs->PaddedRows(num_rows) : 0;
  return num_kept > 0 ? num_kept : num_rows;
}

ConstRows Transformer::Forward(const ForwardBatch& batch) {
  for (TokenId token : batch.tokens) {
    FORERUN_CHECK(token >= 0 && token < vocab_size(), std::to_string(token));
  }
  const int num_rows = static_cast<int>(batch.tokens.size());
  const bool has_prompt = batch.logits_rows.size() != batch.tokens.size();
  const int num_kept = kept_ && !has_prompt ? kept_->graphs->PaddedRows(num_rows) : 0;
  const ForwardBatch run = num_kept > 0 ? kept_->padded.Pad(batch, num_kept) : batch;
  const ForwardRows& rows = stack_.Begin(
      {.tokens = run.tokens,
       .sequences = run.sequences,
       .wanted = run.logits_rows,
       .sources = run.device_tokens.top != nullptr ? run.sources : std::span<const int>(),
       .device_tokens = run.device_tokens,
       .is_kept = num_kept > 0});
  const auto compute = [&] {
    ComputeLogits(ops_, RunLayers(rows), weights_.head(), {.soft_cap = spec_.final_soft_cap},
                  logits_);
  };
  if (num_kept > 0) {
    kept_->graphs->Run(compute);
  } else {
    compute();
  }
  return RowsOf(logits_, static_cast<int>(batch.logits_rows.size()), vocab_size());
}

void Transformer::MoveKv(std::span<const KvMove> moves) {
  stack_.MoveKv(moves);
  if (features_) features_->Move(moves);
}

ConstRows Transformer::RunLayers(const ForwardRows& rows) {
  const int num_rows = rows.num_rows();
  const Rows hidden = RowsOf(hidden_, num_rows, spec_.hidden_size);
  ops_.Embed(rows, *weights_.embedding, spec_.embedding_scale, hidden);
  const int last = spec_.num_layers - 1;
  for (int layer = 0; layer < last; ++layer) {
    if (features_) features_->KeepResidual(layer, hidden, rows);
    stack_.RunLayer(layer, hidden);
  }
  const int num_wanted = static_cast<int>(rows.indices(RowIndices::kWanted).size());
  if (features_) features_->KeepResidual(last, hidden, rows);
  if (!features_ || !features_->spec().reads_last_layer(spec_.num_layers)) {
    // After the last layer's keys and values are stored, only the wanted rows are computed.
    const ConstRows wanted = stack_.RunLastLayer(last, hidden);
    const Rows normed = RowsOf(normed_, num_wanted, spec_.hidden_size);
    if (num_wanted > 0) stack_.Normalize(wanted, weights_.final_norm, normed);
    return normed;
  }
  stack_.RunLayer(last, hidden);
  features_->KeepResidual(last + 1, hidden, rows);
  const Rows normed = RowsOf(normed_, num_rows, spec_.hidden_size);
  stack_.Normalize(hidden, weights_.final_norm, normed);
  if (features_->spec().final_norm) features_->KeepFinal(normed, rows);
  if (num_wanted == num_rows) return normed;
  const Rows wanted = RowsOf(wanted_, num_wanted, spec_.hidden_size);
  ops_.GatherRows(normed, rows, RowIndices::kWanted, wanted);
  return wanted;
}

}  // namespace forerun
