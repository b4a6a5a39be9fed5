#include "cpp/model/spec/rope_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>

namespace forerun {
namespace {

using nlohmann::json;

constexpr double kDefaultTheta = 10'000.0;
constexpr double kGemma3FullTheta = 1'000'000.0;
constexpr double kGemma3SlidingTheta = 10'000.0;

// What a rope object leaves out.
struct RopeDefaults {
  double theta = kDefaultTheta;
  int original_max_position = 0;
};

// Keys that some rope type reads, or that say nothing. A type ignores the keys of the others.
constexpr std::array<std::string_view, 14> kRopeKeys = {
    "rope_type",        "type",
    "rope_theta",       "factor",
    "low_freq_factor",  "beta_fast",
    "high_freq_factor", "original_max_position_embeddings",
    "beta_slow",        "mscale",
    "mscale_all_dim",   "attention_factor",
    "truncate",         "partial_rotary_factor"};

void CheckKeys(const JsonObject& rope) {
  for (const auto& [key, value] : rope.value().items()) {
    if (value.is_null()) continue;
    if (std::find(kRopeKeys.begin(), kRopeKeys.end(), key) == kRopeKeys.end()) {
      rope.Refuse(key, "no such field: it is not understood");
    }
  }
  if (rope.Has("partial_rotary_factor") && rope.Number("partial_rotary_factor", 1.0) != 1.0) {
    rope.Refuse("partial_rotary_factor", "1.0: partial rotation is not supported");
  }
}

RopeScaling ReadScaling(const JsonObject& rope) {
  const char* key = rope.Has("rope_type") ? "rope_type" : "type";
  const std::string type = rope.Has(key) ? rope.String(key, "") : "default";
  if (type == "default") return RopeScaling::kNone;
  if (type == "linear") return RopeScaling::kLinear;
  if (type == "llama3") return RopeScaling::kLlama3;
  if (type == "yarn") return RopeScaling::kYarn;
  rope.Refuse(key, "default, linear, llama3 or yarn");
}

double ReadRequired(const JsonObject& rope, const char* key) {
  if (!rope.Has(key)) rope.Refuse(key, "a number above 0");
  return rope.PositiveNumber(key, 0.0);
}

// Zero and null mean "the usual".
double ReadOrUsual(const JsonObject& rope, const char* key, double usual) {
  if (!rope.Has(key)) return usual;
  const double number = rope.Number(key, usual);
  if (number < 0.0) rope.Refuse(key, "a number of at least 0");
  return number == 0.0 ? usual : number;
}

double YarnMscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

void ReadYarn(const JsonObject& rope, int max_position, RopeSpec& spec) {
  spec.factor = rope.Has("factor") ? ReadRequired(rope, "factor")
                                   : static_cast<double>(max_position) / spec.original_max_position;
  spec.beta_fast = ReadOrUsual(rope, "beta_fast", 32.0);
  spec.beta_slow = ReadOrUsual(rope, "beta_slow", 1.0);
  spec.truncate = rope.Bool("truncate", true);
  if (spec.theta == 1.0) rope.Refuse("rope_theta", "a base other than 1 for yarn");
  if (rope.Has("attention_factor")) {
    spec.attention_factor = rope.Number("attention_factor", 1.0);
    return;
  }
  const double mscale = ReadOrUsual(rope, "mscale", 0.0);
  const double mscale_all_dim = ReadOrUsual(rope, "mscale_all_dim", 0.0);
  spec.attention_factor =
      mscale != 0.0 && mscale_all_dim != 0.0
          ? YarnMscale(spec.factor, mscale) / YarnMscale(spec.factor, mscale_all_dim)
          : YarnMscale(spec.factor, 1.0);
}

RopeSpec ReadRopeObject(const JsonObject& rope, const RopeDefaults& defaults, int max_position) {
  CheckKeys(rope);
  RopeSpec spec;
  spec.scaling = ReadScaling(rope);
  spec.theta = rope.PositiveNumber("rope_theta", defaults.theta);
  if (spec.scaling == RopeScaling::kNone) return spec;
  if (spec.scaling == RopeScaling::kLinear) {
    spec.factor = ReadRequired(rope, "factor");
    return spec;
  }
  spec.original_max_position = defaults.original_max_position;
  if (spec.original_max_position == 0) {
    spec.original_max_position = rope.Int("original_max_position_embeddings", max_position);
  }
  if (spec.scaling == RopeScaling::kYarn) {
    ReadYarn(rope, max_position, spec);
    return spec;
  }
  spec.factor = ReadRequired(rope, "factor");
  spec.low_freq_factor = ReadRequired(rope, "low_freq_factor");
  spec.high_freq_factor = ReadRequired(rope, "high_freq_factor");
  if (spec.high_freq_factor <= spec.low_freq_factor) {
    rope.Refuse("high_freq_factor", "a number above low_freq_factor");
  }
  return spec;
}

// Null for a key that is absent, null or empty.
const json* FindObject(const JsonObject& config, const char* key) {
  if (!config.Has(key)) return nullptr;
  const json* value = config.Find(key);
  if (!value->is_object()) config.Refuse(key, "an object or null");
  return value->empty() ? nullptr : value;
}

JsonObject ObjectOrEmpty(const JsonObject& config, const char* key) {
  return FindObject(config, key) == nullptr ? JsonObject(json::object(), "") : config.Object(key);
}

}  // namespace

RopeSpec ReadRope(const JsonObject& config, int max_position) {
  const bool is_old = FindObject(config, "rope_scaling") != nullptr;
  if (is_old && FindObject(config, "rope_parameters") != nullptr) {
    config.Refuse("rope_scaling", "nothing beside rope_parameters");
  }
  RopeDefaults defaults;
  defaults.theta = config.PositiveNumber("rope_theta", kDefaultTheta);
  // The outer key wins over the rope object's own.
  if (config.Has("original_max_position_embeddings")) {
    defaults.original_max_position = config.Int("original_max_position_embeddings", 0);
  }
  const JsonObject rope = ObjectOrEmpty(config, is_old ? "rope_scaling" : "rope_parameters");
  return ReadRopeObject(rope, defaults, max_position);
}

LayerTypeRopes ReadLayerTypeRopes(const JsonObject& config, int max_position) {
  const JsonObject by_type = ObjectOrEmpty(config, "rope_parameters");
  for (const auto& [key, value] : by_type.value().items()) {
    if (key != "full_attention" && key != "sliding_attention") {
      by_type.Refuse(key, "only full_attention and sliding_attention, an object each");
    }
  }
  JsonObject full = ObjectOrEmpty(by_type, "full_attention");
  const JsonObject sliding = ObjectOrEmpty(by_type, "sliding_attention");
  if (FindObject(config, "rope_scaling") != nullptr) {
    if (!full.value().empty()) config.Refuse("rope_scaling", "nothing beside rope_parameters");
    full = config.Object("rope_scaling");
  }
  for (const JsonObject& rope : {full, sliding}) {
    if (!rope.Bool("truncate", true)) rope.Refuse("truncate", "true in rope_parameters by layer");
  }
  const RopeDefaults full_defaults = {config.PositiveNumber("rope_theta", kGemma3FullTheta), 0};
  const RopeDefaults sliding_defaults = {
      config.PositiveNumber("rope_local_base_freq", kGemma3SlidingTheta), 0};
  return {ReadRopeObject(full, full_defaults, max_position),
          ReadRopeObject(sliding, sliding_defaults, max_position)};
}

}  // namespace forerun
