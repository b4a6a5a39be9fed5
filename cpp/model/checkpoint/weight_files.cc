#include "cpp/model/checkpoint/weight_files.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <string_view>

#include "cpp/model/checkpoint/json.h"
#include "forerun/error.h"

namespace forerun {
namespace {

namespace fs = std::filesystem;

constexpr char kSafetensors[] = "model.safetensors";
constexpr char kPickled[] = "pytorch_model.bin";

// A link to nowhere is there: reading it says what is wrong.
bool IsThere(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found && !error;
}

std::string ReadShardName(const JsonObject& weight_map, const std::string& tensor) {
  const nlohmann::json& value = *weight_map.Find(tensor);
  const std::string name = value.is_string() ? value.get<std::string>() : "";
  // Only a plain file name: an index must not reach outside its directory.
  if (name.empty() || name.front() == '.' ||
      name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
    weight_map.Refuse(tensor, "the name of a file beside the index");
  }
  return name;
}

void ReadIndex(const fs::path& root, WeightFiles& files) {
  const JsonObject index =
      JsonObject::FromFile((root / files.index_name).string(), files.index_name);
  if (!index.Has("weight_map")) index.Refuse("weight_map", "an object of file names by tensor");
  const JsonObject weight_map = index.Object("weight_map");
  std::set<std::string> names;
  for (const auto& [tensor, value] : weight_map.value().items()) {
    const std::string name = ReadShardName(weight_map, tensor);
    names.insert(name);
    files.file_of_tensor[tensor] = name;
  }
  if (names.empty()) index.Refuse("weight_map", "at least one tensor");
  files.names.assign(names.begin(), names.end());
}

std::vector<std::string> FilesThatEndWith(const fs::path& root,
                                          std::initializer_list<std::string_view> extensions) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(root, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string extension = entry->path().extension().string();
    if (std::ranges::find(extensions, extension) != extensions.end()) {
      names.push_back(entry->path().filename().string());
    }
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace

WeightFiles FindWeightFiles(const std::string& directory) {
  std::error_code error;
  const fs::path root(directory);
  if (!fs::is_directory(root, error)) {
    throw CheckpointError("model", std::string("'") + directory + "'", "a directory that exists");
  }
  WeightFiles files;
  for (const char* name : {kSafetensors, kPickled}) {
    files.are_pickled = name == kPickled;
    if (IsThere(root / name)) {
      files.names = {name};
      return files;
    }
    const std::string index_name = std::string(name) + ".index.json";
    if (IsThere(root / index_name)) {
      files.index_name = index_name;
      ReadIndex(root, files);
      return files;
    }
  }
  files.names = FilesThatEndWith(root, {".safetensors"});
  files.are_pickled = files.names.empty();
  if (files.are_pickled) files.names = FilesThatEndWith(root, {".bin", ".pt"});
  return files;
}

}  // namespace forerun
