#include "cpp/model/weights.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "cpp/model/checkpoint/quantization_config.h"
#include "forerun/error.h"

namespace forerun {
namespace {

// What comes before "embed_tokens.weight" in the checkpoint's names.
std::string FindPrefix(const ModelSpec& spec, const Checkpoint& checkpoint) {
  std::vector<std::string> candidates = {"model.", ""};
  if (spec.family == "gemma3") {
    candidates = {"model.language_model.", "language_model.model.", "model."};
  }
  for (const std::string& prefix : candidates) {
    if (checkpoint.Contains(prefix + "embed_tokens.weight")) return prefix;
  }
  return candidates.front();
}

// Integers of a checkpoint become floats.
constexpr char kUnpacked[] = "none";

// Of a name that users give.
std::optional<WeightFormat> FindFormat(const std::string& name) {
  if (name == "int8") return WeightFormat::kInt8;
  if (name == "int4") return WeightFormat::kInt4;
  return std::nullopt;
}

class Loader {
 public:
  Loader(const ModelSpec& spec, Checkpoint& checkpoint, const ModelFormats& formats, Ops& ops,
         const VocabularyRows* rows)
      : spec_(spec),
        reader_(checkpoint),
        formats_(formats),
        ops_(ops),
        rows_(rows),
        prefix_(FindPrefix(spec, checkpoint)) {}

  ModelWeights Load() {
    ModelWeights weights;
    LoadHead(weights);
    weights.final_norm = Norm("norm", spec_.hidden_size);
    for (int i = 0; i < spec_.num_layers; ++i) {
      const LayerTensors tensors = {prefix_ + "layers." + std::to_string(i) + ".",
                                    spec_.hidden_size};
      weights.layers.push_back(LoadLayer(spec_, tensors, reader_, formats_.linear, ops_));
    }
    CheckLeftovers();
    weights.num_unpacked = reader_.unpacked();
    return weights;
  }

 private:
  using Part = WeightReader::Part;

  FloatVector Norm(const std::string& name, int size) {
    return reader_.TakeVector(prefix_ + name + ".weight", size, ops_, spec_.norm_weight_offset);
  }

  void LoadHead(ModelWeights& weights) {
    const Shape shape = {spec_.vocab_size, spec_.hidden_size};
    const std::string embedding = prefix_ + "embed_tokens";
    std::string head = "lm_head";
    if (reader_.Has("language_model.lm_head.weight")) head = "language_model.lm_head";
    if (spec_.tie_word_embeddings && reader_.Has(head + ".weight")) {
      CheckTied(reader_.AreEqual(embedding + ".weight", head + ".weight", shape));
      reader_.Drop(head + ".weight");
    }
    if (rows_ != nullptr) {
      if (spec_.tie_word_embeddings) head = embedding;
      weights.embedding = reader_.TakeRows(embedding + ".weight", shape, rows_->embedding,
                                           formats_.embedding, ops_);
      weights.lm_head = reader_.TakeRows(head + ".weight", shape, rows_->head, formats_.head, ops_);
      return;
    }
    weights.embedding = reader_.TakeMatrix({{embedding, spec_.vocab_size}}, spec_.hidden_size,
                                           formats_.embedding, ops_);
    if (!spec_.tie_word_embeddings) {
      weights.lm_head =
          reader_.TakeMatrix({{head, spec_.vocab_size}}, spec_.hidden_size, formats_.head, ops_);
    }
  }

  // Some writers store the shared matrix twice; two that differ were not meant to be shared.
  static void CheckTied(bool are_equal) {
    if (!are_equal) {
      throw CheckpointError("tie_word_embeddings", "true, but lm_head.weight is another matrix",
                            "false, or a checkpoint without lm_head.weight");
    }
  }

  // Old checkpoints store the rope's frequencies; a model with vision has weights of its own.
  bool IsHarmless(std::string_view name) const {
    if (name.ends_with("rotary_emb.inv_freq")) return true;
    if (spec_.family != "gemma3") return false;
    constexpr std::array<std::string_view, 4> kVision = {"vision_tower.", "model.vision_tower.",
                                                         "multi_modal_projector.",
                                                         "model.multi_modal_projector."};
    return std::any_of(kVision.begin(), kVision.end(),
                       [&](std::string_view prefix) { return name.starts_with(prefix); });
  }

  // Layers for multi-token prediction, which a drafter reads if one is asked for.
  bool IsForPrediction(std::string_view name) const {
    if (name.starts_with(prefix_)) name.remove_prefix(prefix_.size());
    if (name.starts_with("mtp.") || name.starts_with("mtp_")) return true;
    constexpr std::string_view kLayers = "layers.";
    if (!name.starts_with(kLayers)) return false;
    int layer = -1;
    const char* begin = name.data() + kLayers.size();
    std::from_chars(begin, name.data() + name.size(), layer);
    return layer >= spec_.num_layers && layer < spec_.num_layers + spec_.num_mtp_layers;
  }

  void CheckLeftovers() const {
    reader_.CheckLeftovers(
        [this](const std::string& name) { return IsHarmless(name) || IsForPrediction(name); },
        "only tensors that a " + spec_.family + " model as config.json describes it has");
  }

  const ModelSpec& spec_;
  WeightReader reader_;
  const ModelFormats formats_;
  Ops& ops_;
  const VocabularyRows* const rows_;
  const std::string prefix_;
};

}  // namespace

std::int64_t ModelWeights::num_bytes() const {
  return num_bytes_per_token() + (lm_head != nullptr ? embedding->num_bytes() : 0);
}

WeightBytes ModelWeights::BytesByFormat() const {
  WeightBytes bytes;
  embedding->AddBytes(bytes);
  if (lm_head != nullptr) lm_head->AddBytes(bytes);
  for (const LayerWeights& layer : layers) {
    for (const auto* matrix : {&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down}) {
      (*matrix)->AddBytes(bytes);
    }
  }
  return bytes;
}

std::int64_t ModelWeights::num_bytes_per_token() const {
  std::int64_t num_bytes = head().num_bytes();
  for (const LayerWeights& layer : layers) {
    num_bytes += layer.qkv->num_bytes() + layer.attention_output->num_bytes() +
                 layer.gate_up->num_bytes() + layer.down->num_bytes();
  }
  return num_bytes;
}

DType ResolveDType(const std::string& name, const ModelSpec& spec, Checkpoint& checkpoint) {
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float32") return DType::kFloat32;
  if (name != "auto") throw InvalidArgument("dtype", name, "auto, bfloat16 or float32");
  std::string stored = spec.torch_dtype;
  const std::string embedding = FindPrefix(spec, checkpoint) + "embed_tokens.weight";
  if (stored.empty() && checkpoint.Contains(embedding)) {
    stored = Name(checkpoint.Get(embedding).dtype);
  }
  return stored == Name(DType::kBFloat16) ? DType::kBFloat16 : DType::kFloat32;
}

void CheckQuantization(const QuantizationOptions& options) {
  const auto check = [](const char* kind, const std::optional<std::string>& name) {
    if (!name || *name == kUnpacked || FindFormat(*name)) return;
    throw InvalidArgument("quantization", std::string(kind) + " '" + *name + "'",
                          "'int8', 'int4', 'none' or nothing");
  };
  check("linear", options.linear);
  check("embedding", options.embedding);
  check("head", options.head);
  constexpr const char* kMethods[] = {"gptq", "awq", "compressed-tensors", "gguf"};
  if (options.method && std::ranges::find(kMethods, *options.method) == std::end(kMethods)) {
    throw InvalidArgument("quantization", "'" + *options.method + "'",
                          "'gptq', 'awq', 'compressed-tensors', 'gguf' or nothing as the method");
  }
}

void CheckQuantizationMethod(const QuantizationOptions& options, const std::string& directory) {
  if (!options.method) return;
  const std::string stored = ReadQuantizationMethod(ReadOptionalConfig(directory));
  if (stored == *options.method) return;
  throw InvalidArgument(
      "quantization", "'" + *options.method + "'",
      stored.empty() ? "None for weights that are not quantized, as those of " + directory
                     : "None or '" + stored + "', which the weights of " + directory + " are");
}

ModelFormats MakeFormats(const QuantizationOptions& quantization, DType dtype, bool is_tied) {
  const auto make = [&](const std::optional<std::string>& name) -> MatrixFormat {
    if (!name) return dtype;
    const WeightFormat format = *name == kUnpacked ? FormatOf(dtype) : FindFormat(*name).value();
    return {format, /*keeps_integers=*/false};
  };
  ModelFormats formats = {make(quantization.linear), make(quantization.embedding),
                          make(quantization.head)};
  if (is_tied && quantization.head) formats.embedding = formats.head;
  if (is_tied && !quantization.head) formats.head = formats.embedding;
  return formats;
}

ModelFormats FollowFormats(const QuantizationOptions& target, DType dtype, bool is_tied) {
  const bool is_reference = dtype == DType::kFloat32;
  const auto follow = [&](const std::optional<std::string>& name) {
    const bool is_kept = name ? *name == kUnpacked : is_reference;
    return is_kept ? name : std::optional<std::string>("int8");
  };
  ModelFormats formats = MakeFormats(
      {follow(target.linear), follow(target.embedding), follow(target.head)}, dtype, is_tied);
  for (MatrixFormat* format : {&formats.linear, &formats.embedding, &formats.head}) {
    format->keep_integers = format->keep_integers || HasIntegers(format->format);
  }
  return formats;
}

LayerWeights LoadLayer(const ModelSpec& spec, const LayerTensors& tensors, WeightReader& reader,
                       const MatrixFormat& format, Ops& ops) {
  using Part = WeightReader::Part;
  const std::string& layer = tensors.prefix;
  const int hidden = spec.hidden_size, intermediate = spec.intermediate_size;
  const int q_size = spec.num_heads * spec.head_dim, kv_size = spec.num_kv_heads * spec.head_dim;
  const Part q = {layer + "self_attn.q_proj", q_size}, k = {layer + "self_attn.k_proj", kv_size};
  const Part v = {layer + "self_attn.v_proj", kv_size}, o = {layer + "self_attn.o_proj", hidden};
  const Part gate = {layer + "mlp.gate_proj", intermediate};
  const Part up = {layer + "mlp.up_proj", intermediate}, down = {layer + "mlp.down_proj", hidden};

  LayerWeights weights;
  weights.qkv = reader.TakeMatrix({q, k, v}, tensors.num_inputs, format, ops);
  weights.attention_output = reader.TakeMatrix({o}, q_size, format, ops);
  weights.gate_up = reader.TakeMatrix({gate, up}, hidden, format, ops);
  weights.down = reader.TakeMatrix({down}, intermediate, format, ops);
  if (spec.qkv_bias) weights.qkv_bias = reader.TakeBias({q, k, v}, ops);
  if (spec.output_bias) weights.attention_output_bias = reader.TakeBias({o}, ops);
  if (spec.mlp_bias) {
    weights.gate_up_bias = reader.TakeBias({gate, up}, ops);
    weights.down_bias = reader.TakeBias({down}, ops);
  }
  const auto norm = [&](const char* name, int size) {
    return reader.TakeVector(layer + name + ".weight", size, ops, spec.norm_weight_offset);
  };
  if (tensors.has_attention_norm) weights.attention_norm = norm("input_layernorm", hidden);
  // post_attention_layernorm is the norm before the MLP, except in families with norms after
  // attention and after the MLP (Gemma): there it is the one after attention.
  if (spec.post_norms) {
    weights.post_attention_norm = norm("post_attention_layernorm", hidden);
    weights.mlp_norm = norm("pre_feedforward_layernorm", hidden);
    weights.post_mlp_norm = norm("post_feedforward_layernorm", hidden);
  } else {
    weights.mlp_norm = norm("post_attention_layernorm", hidden);
  }
  if (spec.qk_norm) {
    weights.q_norm = norm("self_attn.q_norm", spec.head_dim);
    weights.k_norm = norm("self_attn.k_norm", spec.head_dim);
  }
  return weights;
}

ModelWeights LoadWeights(const ModelSpec& spec, Checkpoint& checkpoint, const ModelFormats& formats,
                         Ops& ops, const VocabularyRows* rows) {
  return Loader(spec, checkpoint, formats, ops, rows).Load();
}

}  // namespace forerun
