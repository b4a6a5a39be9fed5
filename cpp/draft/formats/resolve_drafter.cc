#include "cpp/draft/formats/resolve_drafter.h"

#include <filesystem>
#include <utility>

#include "cpp/draft/formats/detect.h"
#include "cpp/model/checkpoint/safetensors.h"
#include "cpp/model/checkpoint/weight_reader.h"
#include "forerun/error.h"

namespace forerun {
namespace {

constexpr char kField[] = "speculative model";

JsonObject ReadConfig(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    throw CheckpointError(kField, "'" + directory + "'", "a directory that exists");
  }
  return JsonObject::FromFile((std::filesystem::path(directory) / "config.json").string(),
                              "config.json");
}

CheckpointFormat DetectDirectory(const std::string& directory, const JsonObject& config) {
  Checkpoint checkpoint(directory);
  const WeightReader reader(checkpoint, CanonicalDraftName);  // throws if two names become one
  TensorShapes tensors;
  for (const auto& [name, stored_name] : reader.names()) {
    tensors.emplace(name, checkpoint.ShapeOf(stored_name));
  }
  return DetectFormat(tensors, config);
}

ModelMethod MethodOf(const CheckpointFormat& format, const std::string& directory) {
  constexpr std::pair<const char*, ModelMethod> kMethods[] = {
      {"target", ModelMethod::kDraftModel},
      {"eagle", ModelMethod::kEagle},
      {"eagle3", ModelMethod::kEagle3},
      {"mtp", ModelMethod::kMtp},
      {"mlp_speculator", ModelMethod::kMlpSpeculator},
      {"medusa", ModelMethod::kMedusa},
  };
  if (format.obstacle.empty()) {
    for (const auto& [name, method] : kMethods) {
      if (format.name == name) return method;
    }
  }
  throw CheckpointError(kField, "'" + directory + "': " + format.obstacle,
                        "draft_model, eagle, eagle3, mtp, mlp_speculator and medusa run");
}

void ResolveOwn(ModelDrafterOptions& options, const std::string& target_directory) {
  const JsonObject config = ReadConfig(target_directory);
  if (!DetectDirectory(target_directory, config).mtp_tensor.empty()) {
    options.method = ModelMethod::kMtp;
    options.model.clear();
  } else if (options.model.empty()) {
    throw CheckpointError(
        kField, "nothing",
        "a drafter: " + target_directory + " has no layers for multi-token prediction");
  } else {
    options.method = ModelMethod::kDraftModel;
  }
}

// Returns the number of draft tokens that the checkpoint proposes.
std::optional<int> Resolve(ModelDrafterOptions& options, const std::string& target_directory) {
  std::error_code error;
  if (options.model.empty() ||
      std::filesystem::equivalent(options.model, target_directory, error)) {
    ResolveOwn(options, target_directory);
    return std::nullopt;
  }
  const JsonObject config = ReadConfig(options.model);
  options.method = MethodOf(DetectDirectory(options.model, config), options.model);
  return ProposedTokens(config);
}

}  // namespace

SpeculativeOptions ResolveDrafter(SpeculativeOptions options, const std::string& target_directory) {
  if (auto* hybrid = std::get_if<HybridOptions>(&options.method)) {
    if (!hybrid->model.method) Resolve(hybrid->model, target_directory);
  } else if (auto* model = std::get_if<ModelDrafterOptions>(&options.method)) {
    if (model->method) return options;
    const std::optional<int> proposed = Resolve(*model, target_directory);
    const bool is_chain = model->draft_tree_width == 1 && model->speculative_token_tree.empty();
    if (is_chain && !options.num_speculative_tokens) options.num_speculative_tokens = proposed;
  }
  return options;
}

}  // namespace forerun
