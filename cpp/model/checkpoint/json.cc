#include "cpp/model/checkpoint/json.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "cpp/model/checkpoint/json_depth.h"

namespace forerun {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxShownBytes = 100;
constexpr std::uintmax_t kMaxConfigBytes = 256 << 20;

bool IsIntBetween(const json& value, int min, int max) {
  return value.is_number_integer() && value >= min && value <= max;
}

std::string Show(const json* value) {
  return value == nullptr ? "nothing" : Shorten(value->dump());
}

}  // namespace

std::string Shorten(const std::string& text) {
  if (text.size() <= kMaxShownBytes) return text;
  std::size_t length = kMaxShownBytes;
  while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xc0u) == 0x80u) --length;
  return text.substr(0, length) + "...";
}

std::size_t JsonDepth(std::span<const std::byte> text) {
  std::size_t depth = 0, deepest = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = static_cast<char>(text[i]);
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return deepest;
}

json ParseJsonObject(std::span<const std::byte> text, const std::string& label) {
  if (const std::size_t depth = JsonDepth(text); depth > kMaxJsonDepth) {
    throw CheckpointError(label, "JSON nested " + std::to_string(depth) + " levels deep",
                          "at most " + std::to_string(kMaxJsonDepth) + " levels");
  }
  json object;
  try {
    const char* begin = reinterpret_cast<const char*>(text.data());
    object = json::parse(begin, begin + text.size());
  } catch (const json::parse_error& error) {
    throw CheckpointError(label, "text that is not JSON from byte " + std::to_string(error.byte),
                          "a JSON object");
  } catch (const json::exception&) {
    throw CheckpointError(label, "JSON with a number out of range", "a JSON object");
  }
  if (!object.is_object()) throw CheckpointError(label, Show(&object), "a JSON object");
  return object;
}

JsonObject::JsonObject(json object, std::string label)
    : object_(std::move(object)), label_(std::move(label)) {}

JsonObject JsonObject::FromFile(const std::string& path, const std::string& name) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw CheckpointError(name, "no such file at " + path, "a JSON file in the model directory");
  }
  const std::uintmax_t num_bytes = std::filesystem::file_size(path, error);
  if (error || num_bytes > kMaxConfigBytes) {
    throw CheckpointError(name, std::to_string(num_bytes) + " bytes",
                          "at most " + std::to_string(kMaxConfigBytes) + " bytes");
  }
  std::vector<std::byte> text(num_bytes);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(text.data()), static_cast<std::streamsize>(text.size()));
  if (!file) throw CheckpointError(name, "a file that cannot be read at " + path, "a JSON file");
  return JsonObject(ParseJsonObject(text, name), name + ": ");
}

const json* JsonObject::Find(const std::string& key) const {
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &*found;
}

bool JsonObject::Has(const std::string& key) const {
  const json* value = Find(key);
  return value != nullptr && !value->is_null();
}

int JsonObject::Int(const std::string& key, int fallback, int min, int max) const {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!IsIntBetween(*value, min, max)) {
    Refuse(key, "an integer from " + std::to_string(min) + " to " + std::to_string(max));
  }
  return value->get<int>();
}

double JsonObject::Number(const std::string& key, double fallback) const {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number() || !std::isfinite(value->get<double>())) Refuse(key, "a finite number");
  return value->get<double>();
}

double JsonObject::PositiveNumber(const std::string& key, double fallback) const {
  const double number = Number(key, fallback);
  if (number <= 0.0) Refuse(key, "a number above 0");
  return number;
}

bool JsonObject::Bool(const std::string& key, bool fallback) const {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) Refuse(key, "true or false");
  return value->get<bool>();
}

std::string JsonObject::String(const std::string& key, const std::string& fallback) const {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) Refuse(key, "a string");
  return value->get<std::string>();
}

std::optional<int> JsonObject::OptionalInt(const std::string& key,
                                           std::optional<int> fallback) const {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_null()) return std::nullopt;
  return Int(key, 0);
}

std::optional<double> JsonObject::OptionalPositive(const std::string& key,
                                                   std::optional<double> fallback) const {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_null()) return std::nullopt;
  return PositiveNumber(key, 0.0);
}

JsonObject JsonObject::Object(const std::string& key) const {
  const json* value = Find(key);
  if (value == nullptr || !value->is_object()) Refuse(key, "an object");
  return JsonObject(*value, label_ + key + ".");
}

void JsonObject::Refuse(const std::string& key, const std::string& expected) const {
  throw CheckpointError(label_ + key, Show(Find(key)), expected);
}

}  // namespace forerun
