#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpp/draft/formats/draft_head.h"
#include "forerun/error.h"

namespace forerun {
namespace {

bool IsHarmless(const std::string& name) {
  return name == "t2d" || name.ends_with("rotary_emb.inv_freq") || name.starts_with("verifier_");
}

}  // namespace

DraftHeadWeights DraftHeadReader::Load(const ModelFormats& formats,
                                       const DraftVocabulary& vocabulary, Ops& ops) {
  DraftHeadWeights weights;
  const int hidden = spec_.layers.hidden_size;
  const float offset = spec_.layers.norm_weight_offset;
  const auto norm = [&](const std::string& name, int size) {
    return name.empty() ? FloatVector() : reader_.TakeVector(name + ".weight", size, ops, offset);
  };
  if (spec_.fuses_features) {
    const bool is_eagle3 = spec_.kind == DraftHeadKind::kEagle3;
    const int inputs = is_eagle3 ? spec_.feature_size : hidden + spec_.feature_size;
    weights.fusion = reader_.TakeMatrix({{names_.fusion, hidden}}, inputs, formats.linear, ops);
    if (reader_.Has(names_.fusion + ".bias")) {
      weights.fusion_bias = reader_.TakeBias({{names_.fusion, hidden}}, ops);
    }
  }
  if (spec_.num_feature_norms == 1 && reader_.Has("input_norm.weight")) {
    weights.feature_norms.push_back(
        reader_.TakeVector("input_norm.weight", spec_.feature_size, ops));
  } else {
    for (int i = 0; i < spec_.num_feature_norms; ++i) {
      weights.feature_norms.push_back(
          reader_.TakeVector("fc_norm." + std::to_string(i) + ".weight",
                             spec_.feature_size / spec_.num_feature_norms, ops));
    }
  }
  weights.embedding_norm = norm(names_.embedding_norm, hidden);
  weights.hidden_norm = norm(names_.hidden_norm, hidden);
  weights.final_norm = norm(names_.final_norm, hidden);
  for (int i = 0; i < spec_.layers.num_layers; ++i) {
    weights.layers.push_back(LoadLayer(spec_.layers, LayerAt(i), reader_, formats.linear, ops));
  }
  LoadVocabulary(formats, vocabulary, ops, weights);
  if (spec_.kind != DraftHeadKind::kMtp) {
    reader_.CheckLeftovers(IsHarmless, "only tensors that such a draft head has");
  }
  return weights;
}

LayerTensors DraftHeadReader::LayerAt(int index) const {
  const int hidden = spec_.layers.hidden_size;
  if (spec_.kind == DraftHeadKind::kMtp) return {names_.layers, hidden};
  // The first layer of an EAGLE head attends to the fused input as it is.
  const bool is_first = index == 0;
  const bool is_wide = is_first && spec_.kind == DraftHeadKind::kEagle3;
  return {names_.layers + std::to_string(index) + ".", is_wide ? 2 * hidden : hidden,
          /*has_attention_norm=*/!is_first};
}

void DraftHeadReader::LoadVocabulary(const ModelFormats& formats, const DraftVocabulary& vocabulary,
                                     Ops& ops, DraftHeadWeights& weights) {
  // MTP layers share the target's embedding and head, of which some checkpoints have copies.
  const bool is_mtp = spec_.kind == DraftHeadKind::kMtp;
  const int hidden = spec_.layers.hidden_size, num_rows = spec_.layers.vocab_size;
  if (!is_mtp && reader_.Has("embed_tokens.weight")) {
    weights.embedding =
        reader_.TakeMatrix({{"embed_tokens", target_.vocab_size}}, hidden, formats.embedding, ops);
  }
  if (!is_mtp && reader_.Has("d2t")) weights.target_ids = TakeTargetIds();
  const std::vector<TokenId> rows = vocabulary.Choose(num_rows, weights.target_ids);
  if (is_mtp || !reader_.Has("lm_head.weight")) {
    if (weights.target_ids.empty()) return;
    weights.lm_head =
        LoadTargetRows(target_, target_directory_, weights.target_ids, formats.head, ops);
  } else {
    weights.lm_head = TakeOutput(reader_, "lm_head", {num_rows, hidden}, rows, formats.head, ops);
  }
}

std::vector<TokenId> DraftHeadReader::TakeTargetIds() {
  const int num_rows = spec_.layers.vocab_size;
  const std::vector<std::int64_t> offsets =
      reader_.TakeIntegers("d2t", num_rows, -target_.vocab_size, target_.vocab_size);
  std::vector<TokenId> ids;
  for (int i = 0; i < num_rows; ++i) {
    const std::int64_t token = i + offsets[i];
    if (token < 0 || token >= target_.vocab_size) {
      throw CheckpointError(
          "tensor 'd2t'", std::to_string(token) + " for draft token " + std::to_string(i),
          "a token of the target, 0 to " + std::to_string(target_.vocab_size - 1));
    }
    ids.push_back(static_cast<TokenId>(token));
  }
  return ids;
}

std::unique_ptr<PackedMatrix> LoadTargetRows(const ModelSpec& target, const std::string& directory,
                                             std::span<const TokenId> rows,
                                             const MatrixFormat& format, Ops& ops) {
  Checkpoint checkpoint(directory);
  WeightReader reader(checkpoint, CanonicalDraftName);
  const char* name = target.tie_word_embeddings ? "embed_tokens.weight" : "lm_head.weight";
  return reader.TakeRows(name, {target.vocab_size, target.hidden_size}, rows, format, ops);
}

}  // namespace forerun
