#include "cpp/draft/formats/draft_head.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <utility>

#include "cpp/draft/formats/detect.h"
#include "cpp/model/checkpoint/json.h"
#include "cpp/model/spec/rope_config.h"
#include "forerun/error.h"

namespace forerun {
namespace {

using nlohmann::json;

// MTP layers as the families name them. %L is the number of the target's layers.
struct MtpFormat {
  const char* fusion;
  const char* embedding_norm;
  const char* hidden_norm;
  const char* final_norm;  // null: none
  const char* layer;
  bool masks_first_token;
};
constexpr std::array<MtpFormat, 5> kMtpFormats = {{
    {"mtp_layers.0.input_proj", "mtp_layers.0.token_layernorm", "mtp_layers.0.hidden_layernorm",
     "mtp_layers.0.final_layernorm", "mtp_layers.0.", true},
    {"layers.%L.eh_proj", "layers.%L.enorm", "layers.%L.hnorm", "layers.%L.shared_head.norm",
     "layers.%L.", true},
    {"mtp.fc", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm", "mtp.layers.0.",
     false},
    {"mtp.layers.0.eh_proj", "mtp.layers.0.enorm", "mtp.layers.0.hnorm",
     "mtp.layers.0.final_layernorm", "mtp.layers.0.", false},
    {"mtp_linear_proj.0", "mtp_emb_norm.0", "mtp_hidden_norm.0", nullptr, "mtp_block.0.", true},
}};

std::string WithLayers(const char* name, int num_layers) {
  std::string text = name;
  if (const auto begin = text.find("%L"); begin != std::string::npos) {
    text.replace(begin, 2, std::to_string(num_layers));
  }
  return text;
}

bool IsSpeculators(const JsonObject& config) { return config.Has("speculators_model_type"); }

}  // namespace

JsonObject ReadDraftConfig(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    throw CheckpointError("speculative model", "'" + directory + "'", "a directory that exists");
  }
  const JsonObject outer = JsonObject::FromFile(
      (std::filesystem::path(directory) / "config.json").string(), "config.json");
  return FlattenDraftConfig(outer);
}

void CheckDraftVocabulary(const JsonObject& config, const ModelSpec& target) {
  if (!config.Has("vocab_size")) return;
  if (config.Int("vocab_size", 0) != target.vocab_size) {
    config.Refuse("vocab_size",
                  std::to_string(target.vocab_size) + ", the vocabulary of the target");
  }
}

DraftHeadReader::DraftHeadReader(DraftHeadKind kind, const std::string& directory,
                                 const DraftHeadOverrides& overrides, const ModelSpec& target,
                                 const std::string& target_directory)
    : target_(target),
      target_directory_(target_directory),
      checkpoint_(directory.empty() ? target_directory : directory),
      reader_(checkpoint_, CanonicalDraftName) {
  spec_.kind = kind;
  const JsonObject config = ReadDraftConfig(checkpoint_.directory());
  CheckDraftVocabulary(config, target);
  switch (kind) {
    case DraftHeadKind::kEagle:
      ReadEagle(config);
      break;
    case DraftHeadKind::kEagle3:
      ReadEagle3(config, overrides);
      break;
    case DraftHeadKind::kMtp:
      ReadMtp(config, overrides);
      break;
  }
}

DraftHeadReader::~DraftHeadReader() = default;

void DraftHeadReader::ReadEagle(const JsonObject& config) {
  names_ = {"fc", "", "", "", "layers."};
  const Shape fc = reader_.ShapeOf("fc.weight", 2);
  const Shape expected = {target_.hidden_size, 2 * target_.hidden_size};
  if (fc != expected) {
    throw CheckpointError("tensor 'fc.weight'",
                          "[" + std::to_string(fc[0]) + ", " + std::to_string(fc[1]) + "]",
                          "[" + std::to_string(expected[0]) + ", " + std::to_string(expected[1]) +
                              "] for this target's hidden_size");
  }
  spec_.fuses_features = true;
  spec_.feeds_back_normed = true;  // the last layer's output imitates the target's normed state
  spec_.features.final_norm = true;
  spec_.feature_size = target_.hidden_size;
  ReadLayers(config, target_.hidden_size);
  spec_.layers.vocab_size = target_.vocab_size;
  spec_.soft_cap = target_.final_soft_cap;
}

void DraftHeadReader::ReadEagle3(const JsonObject& config, const DraftHeadOverrides& overrides) {
  names_ = {"fc", "layers.0.input_layernorm", "layers.0.hidden_norm", "norm", "layers."};
  if (reader_.Has("mask_hidden")) {
    throw CheckpointError("tensor 'mask_hidden'", "present: a P-EAGLE head",
                          "an EAGLE-3 head, which drafts one token after the other");
  }
  const int hidden = static_cast<int>(reader_.ShapeOf("layers.0.self_attn.o_proj.weight", 2)[0]);
  if (reader_.Has("fc.weight")) {
    const int width = static_cast<int>(reader_.ShapeOf("fc.weight", 2)[1]);
    if (width == 0 || width % target_.hidden_size != 0) {
      throw CheckpointError(
          "tensor 'fc.weight'", std::to_string(width) + " inputs",
          "a multiple of the target's hidden_size, " + std::to_string(target_.hidden_size));
    }
    spec_.fuses_features = true;
    ReadAuxLayers(config, overrides, width / target_.hidden_size);
  } else {
    if (hidden != target_.hidden_size) {
      throw CheckpointError("tensor 'fc.weight'", "nothing",
                            "a matrix from the target's hidden size to the drafter's");
    }
    spec_.features.final_norm = true;
  }
  spec_.feature_size = spec_.features.width(target_.hidden_size);
  if (reader_.Has("input_norm.weight")) spec_.num_feature_norms = 1;
  if (reader_.Has("fc_norm.0.weight")) {
    if (spec_.num_feature_norms > 0) {
      throw CheckpointError("tensor 'fc_norm.0.weight'", "beside input_norm.weight",
                            "one of norm_before_fc and fc_norm");
    }
    spec_.num_feature_norms = static_cast<int>(spec_.features.aux_layers.size());
  }
  for (const auto& [flag, norm] :
       {std::pair("norm_before_fc", "input_norm.weight"), {"fc_norm", "fc_norm.0.weight"}}) {
    if (config.Bool(flag, false) && !reader_.Has(norm)) {
      throw CheckpointError("tensor '" + std::string(norm) + "'", "nothing",
                            std::string("a norm, as ") + flag + " says");
    }
  }
  ReadLayers(config, 2 * hidden);
  const bool usual =
      IsSpeculators(config) && config.String("speculators_model_type", "") == "eagle3";
  spec_.norm_before_residual =
      overrides.norm_before_residual.value_or(config.Bool("norm_before_residual", usual));
  spec_.feeds_back_normed = overrides.norm_output.value_or(config.Bool("norm_output", false));
  spec_.logit_scale = static_cast<float>(config.PositiveNumber("logit_scale", 1.0));
  ReadVocabulary(config);
}

void DraftHeadReader::ReadAuxLayers(const JsonObject& config, const DraftHeadOverrides& overrides,
                                    int num_states) {
  std::vector<int>& layers = spec_.features.aux_layers;
  if (overrides.aux_hidden_state_layer_ids) {
    layers = *overrides.aux_hidden_state_layer_ids;
  } else if (const auto configured = ConfiguredAuxLayers(config)) {
    layers = *configured;
  } else if (num_states == 3) {
    layers = DefaultAuxLayers(target_.num_layers);
  }
  const bool are_layers = std::ranges::all_of(
      layers, [this](int layer) { return layer >= 0 && layer <= target_.num_layers; });
  if (static_cast<int>(layers.size()) != num_states || !are_layers) {
    std::string text;
    for (int layer : layers) text += (text.empty() ? "" : ", ") + std::to_string(layer);
    throw CheckpointError("aux_hidden_state_layer_ids", text.empty() ? "nothing" : text,
                          std::to_string(num_states) + " numbers from 0 to " +
                              std::to_string(target_.num_layers) +
                              ", as fc has inputs and the target layers");
  }
}

void DraftHeadReader::ReadMtp(const JsonObject& config, const DraftHeadOverrides& overrides) {
  const MtpFormat* found = nullptr;
  for (const MtpFormat& format : kMtpFormats) {
    if (reader_.Has(WithLayers(format.fusion, target_.num_layers) + ".weight")) found = &format;
  }
  if (found == nullptr) {
    throw CheckpointError("method", "mtp for a checkpoint without layers for it",
                          "a target whose checkpoint has multi-token prediction layers, such as "
                          "model.mtp_layers.0.*, model.layers.N.eh_proj or mtp.fc");
  }
  if (target_.post_norms) {
    throw CheckpointError("method", "mtp for a " + target_.family + " target",
                          "a family without norms after attention and MLP");
  }
  const auto name = [this](const char* text) { return WithLayers(text, target_.num_layers); };
  names_ = {name(found->fusion), name(found->embedding_norm), name(found->hidden_norm),
            found->final_norm != nullptr ? name(found->final_norm) : "", name(found->layer)};
  spec_.fuses_features = true;
  // MiMo alone reads the hidden state first, and masks; others took its names, not its ways.
  const bool has_mimo_names = found == kMtpFormats.data();
  spec_.hidden_first = has_mimo_names && target_.family == "mimo";
  spec_.masks_first_token = has_mimo_names ? spec_.hidden_first : found->masks_first_token;
  spec_.feeds_back_normed = config.String("model_type", "").find("glm") == std::string::npos;
  // MiMo's target hands on its last layer's state, others the one that their output head reads.
  if (overrides.norm_target_state.value_or(target_.family != "mimo")) {
    spec_.features.final_norm = true;
  } else {
    spec_.features.aux_layers = {target_.num_layers};
  }
  spec_.feature_size = target_.hidden_size;
  spec_.embedding_scale = target_.embedding_scale;
  spec_.soft_cap = target_.final_soft_cap;
  spec_.layers = target_;
  spec_.layers.num_layers = 1;
  spec_.layers.layers = {target_.layers.back()};
  spec_.layers.qkv_bias = reader_.Has(names_.layers + "self_attn.q_proj.bias");
  spec_.layers.output_bias = reader_.Has(names_.layers + "self_attn.o_proj.bias");
  spec_.layers.mlp_bias = reader_.Has(names_.layers + "mlp.gate_proj.bias");
  spec_.layers.qk_norm = reader_.Has(names_.layers + "self_attn.q_norm.weight");
}

void DraftHeadReader::ReadLayers(const JsonObject& config, int num_inputs) {
  ModelSpec& layers = spec_.layers;
  const std::string first = names_.layers + "0.";
  layers.family = "draft head";
  const Shape output = reader_.ShapeOf(first + "self_attn.o_proj.weight", 2);
  layers.hidden_size = static_cast<int>(output[0]);
  if (config.Has("hidden_size") && config.Int("hidden_size", 0) != layers.hidden_size) {
    config.Refuse("hidden_size", std::to_string(layers.hidden_size) + ", as the tensors are");
  }
  const Shape query = reader_.ShapeOf(first + "self_attn.q_proj.weight", 2);
  if (query[1] != num_inputs) {
    throw CheckpointError("tensor '" + first + "self_attn.q_proj.weight'",
                          std::to_string(query[1]) + " inputs", std::to_string(num_inputs));
  }
  layers.num_heads = config.Int("num_attention_heads", 32);
  layers.head_dim =
      config.Has("head_dim") ? config.Int("head_dim", 0, 2) : layers.hidden_size / layers.num_heads;
  const std::int64_t keys = reader_.ShapeOf(first + "self_attn.k_proj.weight", 2)[0];
  if (layers.head_dim < 2 || layers.head_dim % 2 != 0 ||
      query[0] != std::int64_t{layers.num_heads} * layers.head_dim || keys % layers.head_dim != 0) {
    config.Refuse("num_attention_heads", "a number that fits the " + std::to_string(query[0]) +
                                             " queries and " + std::to_string(keys) +
                                             " keys of the attention, with an even head_dim");
  }
  layers.num_kv_heads = static_cast<int>(keys / layers.head_dim);
  const bool has_kv_heads = config.Has("num_key_value_heads");
  if ((has_kv_heads && config.Int("num_key_value_heads", 0) != layers.num_kv_heads) ||
      layers.num_kv_heads == 0 || layers.num_heads % layers.num_kv_heads != 0) {
    config.Refuse("num_key_value_heads", std::to_string(layers.num_kv_heads) +
                                             ", as the tensors are, and a divisor of the heads");
  }
  layers.intermediate_size =
      static_cast<int>(reader_.ShapeOf(first + "mlp.gate_proj.weight", 2)[0]);
  layers.rms_norm_eps = static_cast<float>(config.PositiveNumber("rms_norm_eps", 1e-6));
  layers.activation = ReadActivation(config, "hidden_act", "silu");
  layers.attention_scale = static_cast<float>(1.0 / std::sqrt(double{1.0} * layers.head_dim));
  layers.qkv_bias = reader_.Has(first + "self_attn.q_proj.bias");
  layers.output_bias = reader_.Has(first + "self_attn.o_proj.bias");
  layers.mlp_bias = reader_.Has(first + "mlp.gate_proj.bias");
  layers.qk_norm = reader_.Has(first + "self_attn.q_norm.weight");
  layers.max_position = config.Int("max_position_embeddings", 2048);
  layers.ropes = {ReadRope(config, layers.max_position)};
  while (
      reader_.Has(names_.layers + std::to_string(layers.num_layers) + ".self_attn.q_proj.weight")) {
    const std::size_t layer = layers.num_layers++;
    int window = 0;
    if (config.Has("layer_types")) {
      const json& types = *config.Find("layer_types");
      if (types.is_array() && layer < types.size() && types[layer] == "sliding_attention") {
        window = config.Int("sliding_window", 0, 1);
      }
    }
    layers.layers.push_back({window, 0});
  }
  if (config.Has("num_hidden_layers") && config.Int("num_hidden_layers", 0) != layers.num_layers) {
    config.Refuse("num_hidden_layers", std::to_string(layers.num_layers) + ", as the tensors are");
  }
}

void DraftHeadReader::ReadVocabulary(const JsonObject& config) {
  const int hidden = spec_.layers.hidden_size;
  int rows = target_.vocab_size;
  if (reader_.Has("lm_head.weight")) {
    rows = static_cast<int>(reader_.ShapeOf("lm_head.weight", 2)[0]);
  } else if (reader_.Has("d2t")) {
    rows = static_cast<int>(reader_.ShapeOf("d2t", 1)[0]);
  }
  if (!reader_.Has("lm_head.weight") && hidden != target_.hidden_size) {
    throw CheckpointError("tensor 'lm_head.weight'", "nothing",
                          "a head of its own: the target's reads another hidden size");
  }
  if (config.Has("draft_vocab_size") && config.Int("draft_vocab_size", 0) != rows) {
    config.Refuse("draft_vocab_size", std::to_string(rows) + ", as the tensors are");
  }
  if (!reader_.Has("d2t") && rows != target_.vocab_size) {
    throw CheckpointError("tensor 'd2t'", "nothing",
                          "the target ids of a draft vocabulary of " + std::to_string(rows));
  }
  if (!reader_.Has("embed_tokens.weight") && hidden != target_.hidden_size) {
    throw CheckpointError("tensor 'embed_tokens.weight'", "nothing",
                          "an embedding of its own: the target's has another hidden size");
  }
  spec_.layers.vocab_size = rows;
}

}  // namespace forerun
