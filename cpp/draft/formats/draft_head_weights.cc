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

DraftHeadWeights DraftHeadReader::Load(DType dtype, Ops& ops) {
  DraftHeadWeights weights;
  const int hidden = spec_.layers.hidden_size;
  const float offset = spec_.layers.norm_weight_offset;
  const auto norm = [&](const std::string& name, int size) {
    return name.empty() ? std::vector<float>() : reader_.TakeVector(name + ".weight", size, offset);
  };
  if (spec_.fuses_features) {
    const bool is_eagle3 = spec_.kind == DraftHeadKind::kEagle3;
    const int inputs = is_eagle3 ? spec_.feature_size : hidden + spec_.feature_size;
    weights.fusion = reader_.TakeMatrix({{names_.fusion, hidden}}, inputs, dtype, ops);
    if (reader_.Has(names_.fusion + ".bias")) {
      weights.fusion_bias = reader_.TakeBias({{names_.fusion, hidden}});
    }
  }
  if (spec_.num_feature_norms == 1 && reader_.Has("input_norm.weight")) {
    weights.feature_norms.push_back(reader_.TakeVector("input_norm.weight", spec_.feature_size));
  } else {
    for (int i = 0; i < spec_.num_feature_norms; ++i) {
      weights.feature_norms.push_back(
          reader_.TakeVector("fc_norm." + std::to_string(i) + ".weight",
                             spec_.feature_size / spec_.num_feature_norms));
    }
  }
  weights.embedding_norm = norm(names_.embedding_norm, hidden);
  weights.hidden_norm = norm(names_.hidden_norm, hidden);
  weights.final_norm = norm(names_.final_norm, hidden);
  for (int i = 0; i < spec_.layers.num_layers; ++i) {
    weights.layers.push_back(LoadLayer(i, dtype, ops));
  }
  LoadVocabulary(dtype, ops, weights);
  if (spec_.kind != DraftHeadKind::kMtp) {
    reader_.CheckLeftovers(IsHarmless, "only tensors that such a draft head has");
  }
  return weights;
}

LayerWeights DraftHeadReader::LoadLayer(int index, DType dtype, Ops& ops) {
  const ModelSpec& spec = spec_.layers;
  const bool is_mtp = spec_.kind == DraftHeadKind::kMtp;
  const std::string layer = names_.layers + (is_mtp ? "" : std::to_string(index) + ".");
  const bool is_first = !is_mtp && index == 0;
  const int hidden = spec.hidden_size;
  const int inputs = is_first && spec_.kind == DraftHeadKind::kEagle3 ? 2 * hidden : hidden;
  const int q_size = spec.num_heads * spec.head_dim, kv_size = spec.num_kv_heads * spec.head_dim;
  using Part = WeightReader::Part;
  const Part q = {layer + "self_attn.q_proj", q_size}, k = {layer + "self_attn.k_proj", kv_size};
  const Part v = {layer + "self_attn.v_proj", kv_size}, o = {layer + "self_attn.o_proj", hidden};
  const Part gate = {layer + "mlp.gate_proj", spec.intermediate_size};
  const Part up = {layer + "mlp.up_proj", spec.intermediate_size};
  const Part down = {layer + "mlp.down_proj", hidden};

  LayerWeights weights;
  weights.qkv = reader_.TakeMatrix({q, k, v}, inputs, dtype, ops);
  weights.attention_output = reader_.TakeMatrix({o}, q_size, dtype, ops);
  weights.gate_up = reader_.TakeMatrix({gate, up}, hidden, dtype, ops);
  weights.down = reader_.TakeMatrix({down}, spec.intermediate_size, dtype, ops);
  if (spec.qkv_bias) weights.qkv_bias = reader_.TakeBias({q, k, v});
  if (spec.output_bias) weights.attention_output_bias = reader_.TakeBias({o});
  if (spec.mlp_bias) {
    weights.gate_up_bias = reader_.TakeBias({gate, up});
    weights.down_bias = reader_.TakeBias({down});
  }
  const auto norm = [&](const char* name, int size) {
    return reader_.TakeVector(layer + name, size, spec.norm_weight_offset);
  };
  // The first layer of an EAGLE head attends to the fused input as it is.
  if (!is_first) weights.attention_norm = norm("input_layernorm.weight", hidden);
  weights.mlp_norm = norm("post_attention_layernorm.weight", hidden);
  if (spec.qk_norm) {
    weights.q_norm = norm("self_attn.q_norm.weight", spec.head_dim);
    weights.k_norm = norm("self_attn.k_norm.weight", spec.head_dim);
  }
  return weights;
}

void DraftHeadReader::LoadVocabulary(DType dtype, Ops& ops, DraftHeadWeights& weights) {
  if (spec_.kind == DraftHeadKind::kMtp) return;
  const int hidden = spec_.layers.hidden_size;
  if (reader_.Has("embed_tokens.weight")) {
    weights.embedding =
        reader_.TakeMatrix({{"embed_tokens", target_.vocab_size}}, hidden, dtype, ops);
  }
  const int rows = spec_.layers.vocab_size;
  if (reader_.Has("d2t")) {
    const std::vector<std::int64_t> offsets =
        reader_.TakeIntegers("d2t", rows, -target_.vocab_size, target_.vocab_size);
    for (int i = 0; i < rows; ++i) {
      const std::int64_t token = i + offsets[i];
      if (token < 0 || token >= target_.vocab_size) {
        throw CheckpointError(
            "tensor 'd2t'", std::to_string(token) + " for draft token " + std::to_string(i),
            "a token of the target, 0 to " + std::to_string(target_.vocab_size - 1));
      }
      weights.target_ids.push_back(static_cast<TokenId>(token));
    }
  }
  if (reader_.Has("lm_head.weight")) {
    weights.lm_head = reader_.TakeMatrix({{"lm_head", rows}}, hidden, dtype, ops);
  } else if (!weights.target_ids.empty()) {
    weights.lm_head = LoadTargetRows(target_, target_directory_, weights.target_ids, dtype, ops);
  }
}

std::unique_ptr<PackedMatrix> LoadTargetRows(const ModelSpec& target, const std::string& directory,
                                             std::span<const TokenId> rows, DType dtype, Ops& ops) {
  Checkpoint checkpoint(directory);
  WeightReader reader(checkpoint, CanonicalDraftName);
  const char* name = target.tie_word_embeddings ? "embed_tokens.weight" : "lm_head.weight";
  return reader.TakeRows(name, {target.vocab_size, target.hidden_size}, rows, dtype, ops);
}

}  // namespace forerun
