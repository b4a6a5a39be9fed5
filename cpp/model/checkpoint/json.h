// JSON objects of a model directory, read with types. Every complaint is a CheckpointError that
// names the file, the field, its value and what would be valid.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_JSON_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_JSON_H_

#include <cstddef>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>

#include "forerun/error.h"

namespace forerun {

// At most 100 bytes of `text`, cut between characters.
std::string Shorten(const std::string& text);

// Text that must hold one JSON object. `label` names it in errors.
nlohmann::json ParseJsonObject(std::span<const std::byte> text, const std::string& label);

// One object of a config file. A key whose value is null counts as present only where said so.
class JsonObject {
 public:
  // `label` prefixes field names: "config.json: ".
  JsonObject(nlohmann::json object, std::string label);

  static JsonObject FromFile(const std::string& path, const std::string& name);

  // Null when the key is absent.
  const nlohmann::json* Find(const std::string& key) const;
  // Present and not null.
  bool Has(const std::string& key) const;
  const nlohmann::json& value() const { return object_; }

  // These take `fallback` when the key is absent and refuse null.
  int Int(const std::string& key, int fallback, int min = 1,
          int max = std::numeric_limits<int>::max()) const;
  double Number(const std::string& key, double fallback) const;
  double PositiveNumber(const std::string& key, double fallback) const;
  bool Bool(const std::string& key, bool fallback) const;
  std::string String(const std::string& key, const std::string& fallback) const;

  // These take null for "none"; an absent key gives `fallback`.
  std::optional<int> OptionalInt(const std::string& key, std::optional<int> fallback) const;
  std::optional<double> OptionalPositive(const std::string& key,
                                         std::optional<double> fallback) const;

  // An object inside this one; REQUIRES: Has(key).
  JsonObject Object(const std::string& key) const;

  [[noreturn]] void Refuse(const std::string& key, const std::string& expected) const;

 private:
  nlohmann::json object_;
  std::string label_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_JSON_H_
