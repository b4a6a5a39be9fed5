#include "cpp/model/spec/spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <optional>
#include <string_view>

#include "cpp/model/checkpoint/json.h"
#include "cpp/model/checkpoint/quantization_config.h"
#include "cpp/model/spec/rope_config.h"

namespace forerun {
namespace {

using nlohmann::json;

enum class Bias { kNever, kConfigurable, kQkvAlways };
// Which layers attend to a sliding window when layer_types does not say.
enum class Windows { kNever, kAllLayers, kFromMaxWindowLayers, kEverySecond, kByPattern };

// What sets a family apart, and the values that Hugging Face's config class gives to omitted keys.
struct Family {
  std::string_view model_type;
  std::string_view architecture;
  int vocab_size, hidden_size, intermediate_size, num_layers, num_heads;
  int num_kv_heads;  // 0: as many as heads
  int head_dim;      // 0: hidden_size / num_heads
  int max_position;
  int eos_token_id;  // -1: none
  Windows windows;
  Bias attention_bias;
  bool has_mlp_bias = false;
  bool qk_norm = false;
  bool is_gemma = false;
};

constexpr std::array<Family, 7> kFamilies = {{
    {"llama", "LlamaForCausalLM", 32000, 4096, 11008, 32, 32, 0, 0, 2048, 2, Windows::kNever,
     Bias::kConfigurable, /*has_mlp_bias=*/true},
    {"mistral", "MistralForCausalLM", 32000, 4096, 14336, 32, 32, 8, 0, 131072, 2,
     Windows::kAllLayers, Bias::kNever},
    {"qwen2", "Qwen2ForCausalLM", 151936, 4096, 22016, 32, 32, 32, 0, 32768, -1,
     Windows::kFromMaxWindowLayers, Bias::kQkvAlways},
    {"mimo", "MiMoForCausalLM", 151936, 4096, 22016, 32, 32, 32, 0, 32768, -1,
     Windows::kFromMaxWindowLayers, Bias::kQkvAlways},
    {"qwen3", "Qwen3ForCausalLM", 151936, 4096, 22016, 32, 32, 32, 128, 32768, -1,
     Windows::kFromMaxWindowLayers, Bias::kConfigurable, false, /*qk_norm=*/true},
    {"gemma2", "Gemma2ForCausalLM", 256000, 2304, 9216, 26, 8, 4, 256, 8192, 1,
     Windows::kEverySecond, Bias::kConfigurable, false, false, /*is_gemma=*/true},
    {"gemma3_text", "Gemma3ForCausalLM", 262208, 2304, 9216, 26, 8, 4, 256, 131072, 1,
     Windows::kByPattern, Bias::kConfigurable, false, /*qk_norm=*/true, /*is_gemma=*/true},
}};

// Far above any model, and small enough that sums and products of two stay within an int.
constexpr int kMaxExtent = 1 << 24;  // of vocabulary, hidden and intermediate size
constexpr int kMaxCount = 1 << 13;   // of layers, heads and channels of a head

constexpr char kSupported[] =
    "one of llama (SmolLM too), mistral, mimo, qwen2, qwen3, gemma2, gemma3_text, gemma3";

// Keys of other models that change the computation. They pass when null, false, 0 or empty.
constexpr std::array<const char*, 30> kMustBeOff = {"compression_config",
                                                    "num_local_experts",
                                                    "num_experts",
                                                    "n_routed_experts",
                                                    "num_experts_per_tok",
                                                    "attention_chunk_size",
                                                    "alibi",
                                                    "use_alibi",
                                                    "no_rope_layers",
                                                    "no_rope_layer_interval",
                                                    "use_bidirectional_attention",
                                                    "is_encoder_decoder",
                                                    "add_cross_attention",
                                                    "per_layer_config",
                                                    "block_configs",
                                                    "parallel_attn",
                                                    "use_parallel_residual",
                                                    "use_qk_norm",
                                                    "qk_layernorm",
                                                    "clip_qkv",
                                                    "rope_interleave",
                                                    "rope_interleaved",
                                                    "kv_lora_rank",
                                                    "q_lora_rank",
                                                    "cross_attention_layers",
                                                    "altup_num_inputs",
                                                    "laurel_rank",
                                                    "num_kv_shared_layers",
                                                    "attention_k_eq_v",
                                                    "attention_sinks"};

// Factors of other models; they pass when null or 1.
constexpr std::array<const char*, 9> kMustBeOne = {
    "partial_rotary_factor", "rotary_pct",     "embedding_multiplier", "residual_multiplier",
    "attention_multiplier",  "logits_scaling", "logit_scale",          "scale_emb",
    "lm_head_multiplier"};

bool IsOff(const json& value) {
  return value.is_null() || value == json(false) || (value.is_number() && value == 0) ||
         (value.is_structured() && value.empty());
}

void CheckForeignKeys(const JsonObject& config) {
  for (const char* key : kMustBeOff) {
    const json* value = config.Find(key);
    if (value != nullptr && !IsOff(*value)) config.Refuse(key, "nothing: it is not supported");
  }
  for (const char* key : kMustBeOne) {
    const json* value = config.Find(key);
    if (value != nullptr && !value->is_null() && *value != 1) {
      config.Refuse(key, "nothing or 1: it is not supported");
    }
  }
}

bool HasArchitecture(const JsonObject& config, std::string_view name) {
  if (!config.Has("architectures")) return false;
  const json& names = *config.Find("architectures");
  return names.is_array() && names.size() == 1 && names[0] == name;
}

const Family& FindFamily(const JsonObject& config) {
  if (!config.Has("model_type")) config.Refuse("model_type", kSupported);
  std::string model_type = config.String("model_type", "");
  // MiMo is Qwen 2 with layers for multi-token prediction, and some checkpoints call it that.
  if (model_type == "qwen2" && HasArchitecture(config, "MiMoForCausalLM")) model_type = "mimo";
  for (const Family& family : kFamilies) {
    if (family.model_type == model_type) return family;
  }
  config.Refuse("model_type", kSupported);
}

void CheckArchitecture(const JsonObject& config, std::string_view expected) {
  if (config.Has("architectures") && !HasArchitecture(config, expected)) {
    config.Refuse("architectures", "[\"" + std::string(expected) + "\"] for this model_type");
  }
}

Activation ReadActivation(const JsonObject& config, const Family& family) {
  return family.is_gemma ? ReadActivation(config, "hidden_activation", "gelu_pytorch_tanh")
                         : ReadActivation(config, "hidden_act", "silu");
}

}  // namespace

Activation ReadActivation(const JsonObject& config, const char* key, const std::string& usual) {
  const std::string name = config.Has(key) ? config.String(key, usual) : usual;
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu" || name == "gelu_python") return Activation::kGelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_python_tanh" || name == "gelu_new" ||
      name == "gelu_fast") {
    return Activation::kGeluTanh;
  }
  config.Refuse(
      key,
      "silu, swish, gelu, gelu_python, gelu_pytorch_tanh, gelu_python_tanh, gelu_new or gelu_fast");
}

namespace {

void ReadSizes(const JsonObject& config, const Family& family, ModelSpec& spec) {
  spec.vocab_size = config.Int("vocab_size", family.vocab_size, 1, kMaxExtent);
  spec.hidden_size = config.Int("hidden_size", family.hidden_size, 1, kMaxExtent);
  spec.intermediate_size = config.Int("intermediate_size", family.intermediate_size, 1, kMaxExtent);
  spec.num_layers = config.Int("num_hidden_layers", family.num_layers, 1, kMaxCount);
  spec.num_heads = config.Int("num_attention_heads", family.num_heads, 1, kMaxCount);
  spec.max_position = config.Int("max_position_embeddings", family.max_position);

  const int usual_kv_heads = family.num_kv_heads == 0 ? spec.num_heads : family.num_kv_heads;
  const json* kv_heads = config.Find("num_key_value_heads");
  const bool as_heads = kv_heads != nullptr && kv_heads->is_null();
  spec.num_kv_heads =
      as_heads ? spec.num_heads : config.Int("num_key_value_heads", usual_kv_heads, 1, kMaxCount);
  if (spec.num_heads % spec.num_kv_heads != 0) {
    config.Refuse("num_key_value_heads",
                  "a divisor of num_attention_heads, " + std::to_string(spec.num_heads));
  }
  const json* head_dim = config.Find("head_dim");
  const bool is_given = head_dim != nullptr && !head_dim->is_null();
  const bool is_derived = !is_given && (head_dim != nullptr || family.head_dim == 0);
  if (is_derived && spec.hidden_size % spec.num_heads != 0) {
    config.Refuse("hidden_size", "a multiple of num_attention_heads, " +
                                     std::to_string(spec.num_heads) + ", or head_dim beside it");
  }
  spec.head_dim = is_derived ? spec.hidden_size / spec.num_heads
                             : config.Int("head_dim", family.head_dim, 2, kMaxCount);
  if (spec.head_dim % 2 != 0) config.Refuse("head_dim", "an even head size");
}

void ReadBiases(const JsonObject& config, const Family& family, ModelSpec& spec) {
  const bool attention_bias = config.Has("attention_bias") && config.Bool("attention_bias", false);
  switch (family.attention_bias) {
    case Bias::kNever:
      if (attention_bias) config.Refuse("attention_bias", "false for this model_type");
      break;
    case Bias::kQkvAlways:
      if (config.Has("attention_bias") && !attention_bias) {
        config.Refuse("attention_bias", "true or nothing for this model_type");
      }
      spec.qkv_bias = true;
      break;
    case Bias::kConfigurable:
      spec.qkv_bias = spec.output_bias = attention_bias;
      break;
  }
  spec.mlp_bias = config.Has("mlp_bias") && config.Bool("mlp_bias", false);
  if (spec.mlp_bias && !family.has_mlp_bias) {
    config.Refuse("mlp_bias", "false for this model_type");
  }
}

void ReadScales(const JsonObject& config, const Family& family, ModelSpec& spec) {
  spec.attention_scale = static_cast<float>(1.0 / std::sqrt(double{1.0} * spec.head_dim));
  const bool is_gemma2 = family.model_type == "gemma2";
  const auto attention_cap = config.OptionalPositive(
      "attn_logit_softcapping", is_gemma2 ? std::optional(50.0) : std::nullopt);
  const auto final_cap = config.OptionalPositive("final_logit_softcapping",
                                                 is_gemma2 ? std::optional(30.0) : std::nullopt);
  // Gemma 3's published code reads the attention's cap and then does without it.
  if (attention_cap && !is_gemma2) {
    config.Refuse("attn_logit_softcapping", "null for this model_type");
  }
  if (final_cap && !family.is_gemma) {
    config.Refuse("final_logit_softcapping", "null for this model_type");
  }
  spec.attention_soft_cap = static_cast<float>(attention_cap.value_or(0.0));
  spec.final_soft_cap = static_cast<float>(final_cap.value_or(0.0));
  if (family.is_gemma) {
    spec.attention_scale =
        static_cast<float>(1.0 / std::sqrt(config.PositiveNumber("query_pre_attn_scalar", 256.0)));
    spec.embedding_scale = static_cast<float>(std::sqrt(double{1.0} * spec.hidden_size));
    spec.norm_weight_offset = 1.0f;
  } else if (config.Has("query_pre_attn_scalar")) {
    config.Refuse("query_pre_attn_scalar", "nothing for this model_type");
  }
}

std::optional<int> ReadWindow(const JsonObject& config, const Family& family) {
  if (family.windows == Windows::kNever) {
    const auto window = config.OptionalInt("sliding_window", std::nullopt);
    if (window) config.Refuse("sliding_window", "null for this model_type");
    return std::nullopt;
  }
  const auto window = config.OptionalInt("sliding_window", 4096);
  if (family.windows == Windows::kFromMaxWindowLayers &&
      !config.Bool("use_sliding_window", false)) {
    return std::nullopt;
  }
  if (window && *window < 1) config.Refuse("sliding_window", "an integer of at least 1, or null");
  return window;
}

bool IsSlidingByDefault(const JsonObject& config, Windows windows, bool has_window, int layer) {
  switch (windows) {
    case Windows::kNever:
      return false;
    case Windows::kAllLayers:
      return has_window;
    case Windows::kFromMaxWindowLayers:
      return has_window && layer >= config.Int("max_window_layers", 28, 0);
    case Windows::kEverySecond:
      return (layer + 1) % 2 != 0;
    case Windows::kByPattern:
      return (layer + 1) % config.Int("sliding_window_pattern", 6) != 0;
  }
  return false;
}

// Fills LayerSpec::sliding_window.
void ReadLayers(const JsonObject& config, const Family& family, ModelSpec& spec) {
  const auto window = ReadWindow(config, family);
  const json* types = config.Has("layer_types") ? config.Find("layer_types") : nullptr;
  if (types != nullptr &&
      (!types->is_array() || types->size() != static_cast<std::size_t>(spec.num_layers))) {
    config.Refuse("layer_types",
                  "a list of num_hidden_layers = " + std::to_string(spec.num_layers) + " names");
  }
  const bool is_uniform =
      family.windows == Windows::kNever || family.windows == Windows::kAllLayers;
  for (int i = 0; i < spec.num_layers; ++i) {
    const bool usual = IsSlidingByDefault(config, family.windows, window.has_value(), i);
    bool is_sliding = usual;
    if (types != nullptr) {
      const json& type = (*types)[i];
      is_sliding = type == "sliding_attention";
      if (!is_sliding && type != "full_attention" && type != "attention") {
        config.Refuse("layer_types", "full_attention or sliding_attention for each layer");
      }
      // These models have one kind of layer; a list that disagrees is refused.
      if (is_uniform && is_sliding != usual) {
        config.Refuse("layer_types", std::string(usual ? "sliding" : "full") +
                                         "_attention for every layer of this model_type");
      }
    }
    if (is_sliding && !window) {
      config.Refuse("sliding_window", "an integer, since layers attend to a sliding window");
    }
    spec.layers.push_back({is_sliding ? *window : 0, 0});
  }
}

void ReadRopes(const JsonObject& config, const Family& family, ModelSpec& spec) {
  if (family.windows != Windows::kByPattern) {
    spec.ropes = {ReadRope(config, spec.max_position)};
    return;
  }
  const LayerTypeRopes ropes = ReadLayerTypeRopes(config, spec.max_position);
  spec.ropes = {ropes.full, ropes.sliding};
  for (LayerSpec& layer : spec.layers) layer.rope = layer.sliding_window == 0 ? 0 : 1;
}

// False when the key is absent or null.
bool ReadEosTokens(const JsonObject& config, ModelSpec& spec) {
  if (!config.Has("eos_token_id")) return false;
  const json& value = *config.Find("eos_token_id");
  for (const json& id : value.is_array() ? value : json::array({value})) {
    if (!id.is_number_integer()) config.Refuse("eos_token_id", "an integer or a list of integers");
    // Compared as JSON: the number may be larger than any token id.
    if (id >= 0 && id < spec.vocab_size) spec.AddEosToken(id.get<TokenId>());
  }
  return true;
}

void ReadDType(const JsonObject& config, ModelSpec& spec) {
  const char* key = config.Has("dtype") ? "dtype" : "torch_dtype";
  if (!config.Has(key)) return;
  spec.torch_dtype = config.String(key, "");
  constexpr std::array<std::string_view, 3> kKnown = {"bfloat16", "float16", "float32"};
  if (std::find(kKnown.begin(), kKnown.end(), spec.torch_dtype) == kKnown.end()) {
    config.Refuse(key, "bfloat16, float16 or float32");
  }
}

void ReadEosFromFiles(const std::string& directory, const JsonObject& config, const Family& family,
                      ModelSpec& spec) {
  constexpr char kName[] = "generation_config.json";
  const std::filesystem::path path = std::filesystem::path(directory) / kName;
  std::error_code error;
  bool is_given = false;
  if (std::filesystem::exists(path, error)) {
    is_given = ReadEosTokens(JsonObject::FromFile(path.string(), kName), spec);
  }
  is_given |= ReadEosTokens(config, spec) || config.Find("eos_token_id") != nullptr;
  if (!is_given && family.eos_token_id >= 0) spec.eos_token_ids = {family.eos_token_id};
}

// The fields that describe the computation; `config` is the text model's own object.
ModelSpec ReadTextModel(const JsonObject& config, const Family& family) {
  ModelSpec spec;
  ReadSizes(config, family, spec);
  spec.rms_norm_eps = static_cast<float>(config.PositiveNumber("rms_norm_eps", 1e-6));
  spec.activation = ReadActivation(config, family);
  spec.qk_norm = family.qk_norm;
  spec.post_norms = family.is_gemma;
  ReadBiases(config, family, spec);
  ReadScales(config, family, spec);
  ReadLayers(config, family, spec);
  ReadRopes(config, family, spec);
  ReadDType(config, spec);
  for (const char* key : {"num_nextn_predict_layers", "mtp_num_hidden_layers"}) {
    if (config.Has(key)) spec.num_mtp_layers = config.Int(key, 0, 0, kMaxCount);
  }
  return spec;
}

}  // namespace

void ModelSpec::AddEosToken(TokenId token) {
  const bool is_known = std::ranges::find(eos_token_ids, token) != eos_token_ids.end();
  if (token >= 0 && token < vocab_size && !is_known) eos_token_ids.push_back(token);
}

ModelSpec ReadModelSpec(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    throw CheckpointError("model", std::string("'") + directory + "'", "a directory that exists");
  }
  const JsonObject config = JsonObject::FromFile(
      (std::filesystem::path(directory) / "config.json").string(), "config.json");
  CheckForeignKeys(config);
  ReadLinearQuantization(config);
  // Gemma 3 with a vision tower: its text model is Gemma 3's, described inside.
  const bool has_vision = config.Has("model_type") && config.String("model_type", "") == "gemma3";
  const Family& family = has_vision ? kFamilies.back() : FindFamily(config);
  CheckArchitecture(config, has_vision ? "Gemma3ForConditionalGeneration" : family.architecture);
  const JsonObject text = has_vision ? config.Object("text_config") : config;
  if (has_vision) CheckForeignKeys(text);

  ModelSpec spec = ReadTextModel(text, family);
  spec.family = has_vision ? "gemma3" : family.model_type;
  spec.tie_word_embeddings = config.Bool("tie_word_embeddings", family.is_gemma);
  if (spec.torch_dtype.empty()) ReadDType(config, spec);
  ReadEosFromFiles(directory, config, family, spec);
  return spec;
}

}  // namespace forerun
