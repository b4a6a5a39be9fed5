#include "cpp/model/checkpoint/quantization_config.h"

#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>

namespace forerun {
namespace {

constexpr char kKey[] = "quantization_config";
constexpr char kMethod[] = "quant_method";

std::optional<JsonObject> FindQuantization(const JsonObject& config) {
  if (!config.Has(kKey) || *config.Find(kKey) == nlohmann::json::object()) return std::nullopt;
  return config.Object(kKey);
}

// Throws unless the key is absent, null, or one of the values.
void CheckOneOf(const JsonObject& config, const std::string& key,
                std::initializer_list<nlohmann::json> values) {
  if (!config.Has(key)) return;
  std::string expected;
  for (const nlohmann::json& value : values) {
    if (*config.Find(key) == value) return;
    expected += (expected.empty() ? "" : " or ") + value.dump();
  }
  config.Refuse(key, expected);
}

// Throws unless the key is absent, null or empty.
void CheckEmpty(const JsonObject& config, const std::string& key, const std::string& expected) {
  if (config.Has(key) && !config.Find(key)->empty()) config.Refuse(key, expected);
}

// -1 stands for a whole output.
int ReadGroupSize(const JsonObject& config) {
  if (!config.Has("group_size")) config.Refuse("group_size", "a number of inputs, or -1");
  const int size = config.Int("group_size", 0, /*min=*/-1);
  if (size == 0) config.Refuse("group_size", "a number of inputs, or -1");
  return size < 0 ? 0 : size;
}

LinearQuantization ReadGptq(const JsonObject& config) {
  CheckOneOf(config, "bits", {4});
  if (!config.Has("bits")) config.Refuse("bits", "4");
  CheckOneOf(config, "checkpoint_format", {"gptq", "gptq_v2"});
  CheckOneOf(config, "pack_dtype", {"int32"});
  CheckEmpty(config, "dynamic", "none: all layers quantized alike");
  LinearQuantization result = {.layout = LinearLayout::kGptq};
  result.group_size = ReadGroupSize(config);
  result.is_symmetric = config.Bool("sym", true);
  result.stores_zero_less_1 = config.String("checkpoint_format", "gptq") == "gptq";
  result.has_any_order = config.Bool("desc_act", false);
  return result;
}

LinearQuantization ReadAwq(const JsonObject& config) {
  CheckOneOf(config, "bits", {4});
  if (!config.Has("bits")) config.Refuse("bits", "4");
  CheckOneOf(config, "version", {"gemm", "GEMM"});
  LinearQuantization result = {.layout = LinearLayout::kAwq};
  result.group_size = ReadGroupSize(config);
  result.is_symmetric = false;  // the zero points are stored in any case
  return result;
}

void ReadScheme(const JsonObject& weights, LinearQuantization& result) {
  CheckOneOf(weights, "type", {"int"});
  CheckOneOf(weights, "dynamic", {false});
  if (result.layout == LinearLayout::kPacked) {
    CheckOneOf(weights, "num_bits", {4, 8});
  } else {
    CheckOneOf(weights, "num_bits", {8});
  }
  result.bits = weights.Int("num_bits", 8);
  result.is_symmetric = weights.Bool("symmetric", true);
  CheckOneOf(weights, "strategy", {"tensor", "channel", "group"});
  const bool has_groups = weights.Has("group_size") && weights.Find("group_size")->is_number() &&
                          *weights.Find("group_size") > 0;
  const std::string strategy = weights.Has("strategy") ? weights.String("strategy", "")
                               : has_groups            ? "group"
                                                       : "tensor";
  result.has_one_scale = strategy == "tensor";
  if (strategy == "group") result.group_size = ReadGroupSize(weights);
  CheckOneOf(weights, "actorder", {"group", "dynamic", true, "weight", "static", false});
  if (weights.Has("actorder")) {
    const nlohmann::json& order = *weights.Find("actorder");
    result.has_any_order = order == "group" || order == "dynamic" || order == true;
  }
}

LinearQuantization ReadCompressedTensors(const JsonObject& config) {
  CheckOneOf(config, "quantization_status", {"compressed"});
  CheckEmpty(config, "kv_cache_scheme", "none");
  CheckEmpty(config, "transform_config", "none");
  if (config.Has("sparsity_config")) {
    CheckOneOf(config.Object("sparsity_config"), "format", {"dense"});
  }
  if (!config.Has("config_groups") || config.Object("config_groups").value().size() != 1) {
    config.Refuse("config_groups", "one group, of the linear layers");
  }
  const JsonObject groups = config.Object("config_groups");
  const JsonObject group = groups.Object(groups.value().begin().key());
  CheckOneOf(group, "targets", {nlohmann::json::array({"Linear"})});
  CheckEmpty(group, "input_activations", "none: weights alone are quantized");
  CheckEmpty(group, "output_activations", "none: weights alone are quantized");
  if (!group.Has("weights")) group.Refuse("weights", "how they are quantized");

  const JsonObject& described = group.Has("format") ? group : config;
  CheckOneOf(described, "format", {"pack-quantized", "int-quantized", "naive-quantized"});
  LinearQuantization result;
  result.layout = described.String("format", "pack-quantized") == "pack-quantized"
                      ? LinearLayout::kPacked
                      : LinearLayout::kInt8;
  ReadScheme(group.Object("weights"), result);
  return result;
}

}  // namespace

JsonObject ReadOptionalConfig(const std::string& directory) {
  constexpr char kConfig[] = "config.json";
  const std::filesystem::path path = std::filesystem::path(directory) / kConfig;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return {nlohmann::json::object(), ""};
  return JsonObject::FromFile(path.string(), kConfig);
}

std::string ReadQuantizationMethod(const JsonObject& config) {
  const auto quantization = FindQuantization(config);
  return quantization ? quantization->String(kMethod, "") : "";
}

LinearQuantization ReadLinearQuantization(const JsonObject& config) {
  const auto quantization = FindQuantization(config);
  if (!quantization) return {};
  const std::string method = quantization->String(kMethod, "");
  if (method == "gptq") return ReadGptq(*quantization);
  if (method == "awq") return ReadAwq(*quantization);
  if (method == "compressed-tensors") return ReadCompressedTensors(*quantization);
  if (method == "gguf") return {};  // the file of the tensors says which are blocks
  quantization->Refuse(kMethod, "gptq, awq or compressed-tensors");
}

}  // namespace forerun
