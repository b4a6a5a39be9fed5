#include "cpp/draft/formats/detect.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <string_view>
#include <utility>

#include "cpp/draft/draft_limits.h"
#include "forerun/error.h"

namespace forerun {
namespace {

using nlohmann::json;

using Evidence = std::optional<std::string>;

bool Has(const TensorShapes& tensors, const std::string& name) { return tensors.contains(name); }

// Whether `name` is `pattern`, in which '#' is any decimal number.
bool Matches(std::string_view pattern, std::string_view name) {
  while (!pattern.empty()) {
    if (pattern.front() != '#') {
      if (name.empty() || name.front() != pattern.front()) return false;
      pattern.remove_prefix(1);
      name.remove_prefix(1);
      continue;
    }
    const std::size_t num_digits = std::min(name.find_first_not_of("0123456789"), name.size());
    if (num_digits == 0) return false;
    pattern.remove_prefix(1);
    name.remove_prefix(num_digits);
  }
  return name.empty();
}

template <std::size_t size>
Evidence FindMatch(const TensorShapes& tensors, const std::array<const char*, size>& patterns) {
  for (const auto& [name, shape] : tensors) {
    for (const char* pattern : patterns) {
      if (Matches(pattern, name)) return name;
    }
  }
  return std::nullopt;
}

Evidence MlpEvidence(const TensorShapes& tensors) {
  if (Has(tensors, "forget_emb.0.weight")) return "forget_emb.0.weight";
  // Embeddings and projections of Arctic's may be sequences of modules.
  for (const std::string kind : {"emb", "proj"}) {
    if (!Has(tensors, kind + ".0.weight") && !Has(tensors, kind + ".0.0.weight")) return {};
  }
  return Has(tensors, "head.0.weight") ? Evidence("emb, proj and head") : std::nullopt;
}

Evidence MedusaEvidence(const TensorShapes& tensors) {
  constexpr std::array<const char*, 2> kPatterns = {"#.#.linear.weight",
                                                    "blocks.#.layers.#.weight"};
  return FindMatch(tensors, kPatterns);
}

Evidence DSparkEvidence(const TensorShapes& tensors) {
  const auto found = tensors.lower_bound("markov_head.");
  const bool is_there = found != tensors.end() && found->first.starts_with("markov_head.");
  return is_there ? Evidence(found->first) : std::nullopt;
}

// Whether a tensor is a matrix [n, num_inputs].
bool HasInputs(const TensorShapes& tensors, const std::string& name, std::int64_t num_inputs) {
  const auto found = tensors.find(name);
  return found != tensors.end() && found->second.size() == 2 && found->second[1] == num_inputs;
}

Evidence Eagle3Evidence(const TensorShapes& tensors) {
  const auto output = tensors.find("layers.0.self_attn.o_proj.weight");
  if (output == tensors.end() || output->second.empty()) return std::nullopt;
  if (!Has(tensors, "layers.0.hidden_norm.weight") ||
      !HasInputs(tensors, "layers.0.self_attn.q_proj.weight", 2 * output->second[0])) {
    return std::nullopt;
  }
  return "a hidden_norm in layer 0, and projections of twice the width";
}

Evidence PEagleEvidence(const TensorShapes& tensors) {
  return Has(tensors, "mask_hidden") ? Eagle3Evidence(tensors) : std::nullopt;
}

Evidence DFlashEvidence(const TensorShapes& tensors) {
  const bool is_there = Has(tensors, "hidden_norm.weight") && Has(tensors, "fc.weight");
  return is_there ? Evidence("hidden_norm beside fc") : std::nullopt;
}

Evidence EagleEvidence(const TensorShapes& tensors) {
  const auto fusion = tensors.find("fc.weight");
  if (fusion == tensors.end() || fusion->second.size() != 2 ||
      fusion->second[1] != 2 * fusion->second[0] ||
      !Has(tensors, "layers.0.self_attn.q_proj.weight")) {
    return std::nullopt;
  }
  for (const char* absent : {"layers.0.input_layernorm.weight", "norm.weight", "lm_head.weight"}) {
    if (Has(tensors, absent)) return std::nullopt;
  }
  return "fc of twice the width, no first norm, no head";
}

Evidence TargetEvidence(const TensorShapes& tensors) {
  // Quantized layers have no weight of that name.
  const bool has_layers = std::ranges::any_of(
      std::array{"weight", "qweight", "weight_packed"}, [&](const char* weight) {
        return Has(tensors, std::string("layers.0.self_attn.o_proj.") + weight);
      });
  if (!has_layers || !Has(tensors, "embed_tokens.weight") || !Has(tensors, "norm.weight")) {
    return std::nullopt;
  }
  return "embedding, layers and final norm";
}

Evidence MtpEvidence(const TensorShapes& tensors) {
  constexpr std::array<const char*, 6> kPatterns = {
      "layers.#.eh_proj.weight",  "mtp.fc.weight",      "mtp_layers.#.input_proj.weight",
      "mtp_linear_proj.#.weight", "mtp.eh_proj.weight", "mtp.layers.#.eh_proj.weight"};
  return FindMatch(tensors, kPatterns);
}

// In the order in which they are tried: a tensor may also be part of a format further down.
struct Rule {
  const char* name;
  Evidence (*evidence)(const TensorShapes& tensors);
  const char* obstacle;
};
constexpr std::array<Rule, 9> kRules = {{
    {"mlp_speculator", MlpEvidence, ""},
    {"medusa", MedusaEvidence, ""},
    {"dspark", DSparkEvidence, "DSpark, which drafts a block in one pass"},
    {"peagle", PEagleEvidence, "P-EAGLE, which drafts all tokens in one pass"},
    {"eagle3", Eagle3Evidence, ""},
    {"dflash", DFlashEvidence, "DFlash, which drafts a block in one pass"},
    {"eagle", EagleEvidence, ""},
    {"target", TargetEvidence, ""},
    {"mtp", MtpEvidence, ""},
}};

CheckpointFormat DetectTensors(const TensorShapes& tensors) {
  for (const Rule& rule : kRules) {
    if (const Evidence evidence = rule.evidence(tensors)) {
      return {rule.name, *evidence, MtpEvidence(tensors).value_or(""), rule.obstacle};
    }
  }
  std::string some;
  for (auto it = tensors.begin(); it != tensors.end() && some.size() < 100; ++it) {
    some += it->first + ", ";
  }
  throw CheckpointError("tensors", some + "...", "a language model or a drafter of a known format");
}

struct Claim {
  std::string method, where;
};

std::string Show(const json& value) {
  return Shorten(value.is_string() ? value.get<std::string>() : value.dump());
}

std::optional<Claim> ReadSpeculatorsClaim(const JsonObject& config) {
  constexpr char kKey[] = "speculators_model_type";
  if (!config.Has(kKey)) return std::nullopt;
  constexpr std::array<std::pair<const char*, const char*>, 7> kTypes = {{
      {"eagle3", "eagle3"},
      {"peagle", "peagle"},
      {"eagle", "eagle"},
      {"dflash", "dflash"},
      {"dflash2", "dflash"},
      {"dspark", "dspark"},
      {"mtp", "mtp"},
  }};
  const json& value = *config.Find(kKey);
  std::string expected;
  for (const auto& [type, method] : kTypes) {
    if (value == type) return Claim{method, std::string(kKey) + " " + type};
    expected += (expected.empty() ? "one of " : ", ") + std::string(type);
  }
  throw CheckpointError(kKey, Show(value), expected);
}

// The method that a config states, and where; absent: it states none.
std::optional<Claim> ReadClaim(const JsonObject& config) {
  if (auto claim = ReadSpeculatorsClaim(config)) return claim;
  const json* type = config.Find("model_type");
  for (const char* method : {"medusa", "mlp_speculator", "eagle"}) {
    if (type != nullptr && *type == method) {
      return Claim{method, std::string("model_type ") + method};
    }
  }
  if (!config.Has("architectures")) return std::nullopt;
  const json& names = *config.Find("architectures");
  if (!names.is_array()) throw CheckpointError("architectures", Show(names), "a list of names");
  for (const json& item : names) {
    const std::string name = Show(item);
    std::string lower = name;
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
    if (lower.find("eagle3") != std::string::npos) return Claim{"eagle3", "architecture " + name};
    for (const char* prefix : {"Arctic", "MLPSpeculator", "MLPVariant"}) {
      if (name.starts_with(prefix)) return Claim{"mlp_speculator", "architecture " + name};
    }
  }
  return std::nullopt;
}

// P-EAGLE is served as EAGLE-3; DSpark is a DFlash with more heads.
bool Agree(const std::string& claimed, const std::string& found) {
  const auto is_pair = [&](const char* a, const char* b) {
    return (claimed == a && found == b) || (claimed == b && found == a);
  };
  return claimed == found || is_pair("eagle3", "peagle") || is_pair("dflash", "dspark");
}

std::string FindObstacle(const CheckpointFormat& format, const TensorShapes& tensors,
                         const JsonObject& config) {
  if (format.name == "target" && (config.Find("pard_token") != nullptr ||
                                  (config.Has("spd_type") && *config.Find("spd_type") == "pard"))) {
    return "PARD, which drafts all tokens in one pass";
  }
  const bool has_sequences = Has(tensors, "emb.0.0.weight") ||
                             (Has(tensors, "proj.0.0.weight") && !Has(tensors, "proj.0.weight"));
  if (format.name == "mlp_speculator" && has_sequences && !Has(tensors, "forget_emb.0.weight")) {
    return "an Arctic speculator with sequences of modules";
  }
  return format.obstacle;
}

}  // namespace

std::string CanonicalDraftName(const std::string& name) {
  constexpr std::array<std::string_view, 5> kPrefixes = {"model.", "language_model.", "speculator.",
                                                         "medusa_heads.", "draft_model."};
  std::string_view rest = name;
  for (bool is_stripped = true; is_stripped;) {
    is_stripped = false;
    for (std::string_view prefix : kPrefixes) {
      if (!rest.starts_with(prefix)) continue;
      rest.remove_prefix(prefix.size());
      is_stripped = true;
    }
  }
  constexpr std::string_view kMidLayer = "midlayer.";
  if (rest.starts_with(kMidLayer)) {
    return "layers.0." + std::string(rest.substr(kMidLayer.size()));
  }
  return std::string(rest);
}

JsonObject FlattenDraftConfig(const JsonObject& config) {
  json flat = json::object();
  for (const char* key : {"transformer_layer_config", "text_config", "model", "eagle_config"}) {
    if (!config.Has(key)) continue;
    if (!config.Find(key)->is_object()) config.Refuse(key, "an object");
    flat.update(*config.Find(key));
  }
  flat.update(config.value());
  return {std::move(flat), "config.json: "};
}

CheckpointFormat DetectFormat(const TensorShapes& tensors, const JsonObject& config) {
  CheckpointFormat format = DetectTensors(tensors);
  const auto claim = ReadClaim(config);
  if (claim && !Agree(claim->method, format.name)) {
    throw CheckpointError("config.json", claim->where,
                          format.name + ", as the tensors are: " + format.evidence);
  }
  format.obstacle = FindObstacle(format, tensors, config);
  return format;
}

std::optional<std::vector<int>> ConfiguredAuxLayers(const JsonObject& config) {
  constexpr char kKey[] = "eagle_aux_hidden_state_layer_ids";
  if (!config.Has(kKey)) return std::nullopt;
  const json& ids = *config.Find(kKey);
  if (!ids.is_array()) config.Refuse(kKey, "a list of layers of the target");
  std::vector<int> layers;
  for (const json& id : ids) {
    if (!id.is_number_integer()) config.Refuse(kKey, "a list of layers of the target");
    layers.push_back(id.get<int>());
  }
  // A list that begins with 1 names layers by what leaves them, others by what enters them; the
  // speculators format always does the latter.
  if (!layers.empty() && layers.front() == 1 && !config.Has("speculators_model_type")) {
    for (int& layer : layers) ++layer;
  }
  return layers;
}

std::vector<int> DefaultAuxLayers(int num_layers) { return {2, num_layers / 2, num_layers - 3}; }

bool CanServeAs(const CheckpointFormat& format, const std::string& method) {
  if (method == "draft_model") return format.name == "target";
  if (method == "mtp" && format.name == "target") return !format.mtp_tensor.empty();
  return Agree(method, format.name);
}

std::optional<int> ProposedTokens(const JsonObject& config) {
  constexpr char kKey[] = "speculators_config";
  if (!config.Has(kKey)) return std::nullopt;
  const json& settings = *config.Find(kKey);
  const auto refuse = [&]() -> std::optional<int> {
    throw CheckpointError(kKey, Show(settings), "proposal_methods with speculative_tokens");
  };
  if (!settings.is_object()) return refuse();
  const auto proposals = settings.find("proposal_methods");
  if (proposals == settings.end() || proposals->is_null()) return std::nullopt;
  if (!proposals->is_array()) return refuse();
  if (proposals->empty()) return std::nullopt;
  const json& first = proposals->front();
  if (!first.is_object() || !first.contains("speculative_tokens")) return refuse();
  const json& tokens = first["speculative_tokens"];
  if (!tokens.is_number_integer() || tokens < 1 || tokens > kMaxDraftTokens) {
    throw CheckpointError("speculative_tokens", tokens.dump(),
                          "an integer from 1 to " + std::to_string(kMaxDraftTokens));
  }
  return tokens.get<int>();
}

}  // namespace forerun
