#include "cpp/model/transformer.h"

#include <string>
#include <utility>

#include "cpp/model/logits.h"
#include "cpp/util/check.h"

namespace forerun {

Transformer::Transformer(ModelSpec spec, ModelWeights weights, Ops& ops,
                         const TransformerLimits& limits, const FeatureSpec& features)
    : spec_(std::move(spec)),
      weights_(std::move(weights)),
      ops_(ops),
      kept_(ops, limits),
      stack_(spec_, weights_.layers, ops, kept_.Padded(limits)) {
  const TransformerLimits padded = kept_.Padded(limits);
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
  kept_.SetBlocks(num_blocks);
  stack_.ReserveBlocks(num_blocks + kept_.num_blocks());
  if (features_) features_->ReserveBlocks(num_blocks + kept_.num_blocks());
}

int Transformer::PaddedRows(int num_rows) const {
  const int num_kept = kept_.NumRows(num_rows, num_rows);
  return num_kept > 0 ? num_kept : num_rows;
}

ConstRows Transformer::Forward(const ForwardBatch& batch) {
  for (TokenId token : batch.tokens) {
    FORERUN_CHECK(token >= 0 && token < vocab_size(), std::to_string(token));
  }
  const int num_wanted = static_cast<int>(batch.logits_rows.size());
  const int num_kept = kept_.NumRows(static_cast<int>(batch.tokens.size()), num_wanted);
  const ForwardBatch run = num_kept > 0 ? kept_.Pad(batch, num_kept) : batch;
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
  took_usual_time_ = true;
  if (num_kept > 0) {
    took_usual_time_ = kept_.Run(/*kind=*/0, compute);
  } else {
    compute();
  }
  return RowsOf(logits_, num_wanted, weights_.head().num_outputs());
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
