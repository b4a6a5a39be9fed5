#include "cpp/draft/neural/model_drafter.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cpp/draft/draft_limits.h"
#include "cpp/draft/hybrid.h"
#include "cpp/draft/neural/head_network.h"
#include "cpp/draft/neural/lstm_network.h"
#include "cpp/draft/neural/medusa_network.h"
#include "cpp/draft/neural/mlp_network.h"
#include "cpp/draft/neural/model_network.h"
#include "cpp/draft/neural/tree_shape.h"
#include "cpp/draft/text/suffix.h"
#include "cpp/util/check.h"
#include "forerun/error.h"

namespace forerun {
namespace {

// A hybrid's model does not run where the index expects at least this part of the longest path that
// the model could draft to be accepted.
constexpr double kEnoughOfPath = 0.6;

// Where the weights of drawn tokens would take more of a device's memory, the host draws.
constexpr std::int64_t kMostDrawnBytes = std::int64_t{1} << 30;

std::optional<DraftHeadKind> FindHeadKind(ModelMethod method) {
  switch (method) {
    case ModelMethod::kEagle:
      return DraftHeadKind::kEagle;
    case ModelMethod::kEagle3:
      return DraftHeadKind::kEagle3;
    case ModelMethod::kMtp:
      return DraftHeadKind::kMtp;
    default:
      return std::nullopt;
  }
}

void CheckBridge(const VocabularyBridge& bridge, int draft_vocab_size, int vocab_size) {
  const std::string field = "vocabulary_bridge";
  if (bridge.draft_ids.size() != static_cast<std::size_t>(vocab_size)) {
    throw InvalidArgument(field, std::to_string(bridge.draft_ids.size()) + " draft_ids",
                          std::to_string(vocab_size) + ", one per token of the target");
  }
  for (TokenId token : bridge.draft_ids) {
    if (token < 0 || token >= draft_vocab_size) {
      throw InvalidArgument(field, "draft id " + std::to_string(token),
                            "0 to " + std::to_string(draft_vocab_size - 1));
    }
  }
  TokenId last = -1;
  for (TokenId token : bridge.shared_ids) {
    if (token <= last || token >= vocab_size) {
      throw InvalidArgument(field, "shared id " + std::to_string(token),
                            "ascending ids below " + std::to_string(vocab_size));
    }
    last = token;
  }
  if (bridge.shared_ids.empty()) {
    throw InvalidArgument(field, "no shared_ids", "at least one token that both have");
  }
}

// Refuses fields of another format than the drafter's.
void CheckHeadFields(const ModelDrafterOptions& options) {
  const auto check = [&](bool is_given, const char* field, ModelMethod method,
                         const char* expected) {
    if (is_given && options.method != method) throw InvalidArgument(field, "given", expected);
  };
  check(options.aux_hidden_state_layer_ids.has_value(), "aux_hidden_state_layer_ids",
        ModelMethod::kEagle3, "nothing: only eagle3 reads the target's layers");
  check(options.norm_output.has_value(), "norm_output", ModelMethod::kEagle3,
        "nothing: only eagle3 has this choice");
  check(options.norm_before_residual.has_value(), "norm_before_residual", ModelMethod::kEagle3,
        "nothing: only eagle3 has this choice");
  check(options.norm_target_state.has_value(), "norm_target_state", ModelMethod::kMtp,
        "nothing: only mtp has this choice");
}

// Refuses a path longer than the drafter can make.
void CheckDepth(const SpeculativeOptions& options, const ModelDrafterOptions& model,
                int max_depth) {
  const std::string expected =
      "at most " + std::to_string(max_depth) + ", as the drafter has heads";
  if (const TreeShape shape(model.speculative_token_tree); shape.depth() > max_depth) {
    throw InvalidArgument("speculative_token_tree",
                          "a path of " + std::to_string(shape.depth()) + " ranks", expected);
  }
  if (model.draft_tree_depth && *model.draft_tree_depth > max_depth) {
    throw InvalidArgument("draft_tree_depth", std::to_string(*model.draft_tree_depth), expected);
  }
  const bool is_chain = model.draft_tree_width == 1 && model.speculative_token_tree.empty() &&
                        !std::holds_alternative<HybridOptions>(options.method);
  if (is_chain && options.num_speculative_tokens && *options.num_speculative_tokens > max_depth) {
    throw InvalidArgument("num_speculative_tokens", std::to_string(*options.num_speculative_tokens),
                          expected);
  }
}

const ModelDrafterOptions& ModelOptionsOf(const SpeculativeOptions& options) {
  const ModelDrafterOptions* model = FindModelOptions(options.method);
  FORERUN_CHECK(model != nullptr, "no model");
  return *model;
}

}  // namespace

ModelDrafterSource::ModelDrafterSource(const SpeculativeOptions& options, const ModelSpec& target,
                                       const std::string& target_directory,
                                       const QuantizationOptions& target_quantization)
    : options_(options),
      model_options_(ModelOptionsOf(options_)),
      target_hidden_size_(target.hidden_size),
      target_directory_(target_directory),
      target_quantization_(target_quantization),
      vocabulary_(model_options_.draft_vocab_size,
                  model_options_.model.empty() ? target_directory : model_options_.model, target) {
  FORERUN_CHECK(model_options_.method.has_value(), "not resolved");
  CheckHeadFields(model_options_);
  if (model_options_.quantization) {
    const std::string& own = model_options_.model;
    CheckQuantizationMethod(*model_options_.quantization, own.empty() ? target_directory : own);
  }
  if (model_options_.method == ModelMethod::kDraftModel) {
    model_ = ReadModelSpec(model_options_.model);
    if (model_options_.vocabulary_bridge) {
      CheckBridge(*model_options_.vocabulary_bridge, model_->vocab_size, target.vocab_size);
    } else if (model_->vocab_size != target.vocab_size) {
      throw CheckpointError(
          "vocab_size",
          std::to_string(model_->vocab_size) + " of the drafter " + model_options_.model,
          std::to_string(target.vocab_size) +
              ", the vocabulary of the target, or a vocabulary_bridge");
    }
  } else if (const auto kind = FindHeadKind(*model_options_.method)) {
    head_ = std::make_unique<DraftHeadReader>(
        *kind, model_options_.model,
        DraftHeadOverrides{model_options_.aux_hidden_state_layer_ids,
                           model_options_.norm_before_residual, model_options_.norm_output,
                           model_options_.norm_target_state},
        target, target_directory);
    features_ = head_->spec().features;
  } else {
    features_.final_norm = true;
  }
}

int ModelDrafterSource::num_level_rows() const {
  return std::max(model_options_.draft_tree_width,
                  TreeShape(model_options_.speculative_token_tree).most_rows());
}

std::int64_t ModelDrafterSource::block_bytes(DType kv_dtype, int block_size) const {
  std::int64_t num_bytes = features_.num_bytes(target_hidden_size_) * block_size;
  if (head_ != nullptr) {
    num_bytes += MakeKvLayout(head_->spec().layers, kv_dtype, block_size).block_bytes();
  }
  if (model_) num_bytes += MakeKvLayout(*model_, kv_dtype, block_size).block_bytes();
  return num_bytes;
}

std::unique_ptr<Drafter> ModelDrafterSource::Load(const Transformer& target, Backend& backend,
                                                  const TransformerLimits& limits, DType dtype,
                                                  DraftRecorder* recorder) {
  AutoregressiveSetting setting;
  setting.width = model_options_.draft_tree_width;
  setting.shape = TreeShape(model_options_.speculative_token_tree);
  setting.max_depth = MaxModelPath(options_);
  setting.is_sampled = model_options_.draft_sample_method == DraftSampleMethod::kProbabilistic;
  setting.vocab_size = target.vocab_size();
  setting.max_rows = limits.max_rows;
  setting.num_blocks = limits.num_blocks;
  setting.recorder = recorder;
  setting.memory = &backend.memory();
  std::unique_ptr<DraftNetwork> network = LoadNetwork(target, backend.ops(), limits, dtype);
  CheckDepth(options_, model_options_, network->max_depth());
  const std::span<const TokenId> ids = network->target_ids();
  const int max_nodes = setting.max_depth * limits.max_logits_rows;
  const std::int64_t num_weight_bytes = std::int64_t{4} * max_nodes * setting.vocab_size;
  setting.draws_on_device = num_weight_bytes <= kMostDrawnBytes && setting.is_sampled &&
                            setting.memory != &HostMemory() && setting.width == 1 &&
                            setting.shape.empty() &&
                            options_.acceptance_method != AcceptanceMethod::kCoupled &&
                            std::ranges::is_sorted(ids, std::ranges::less_equal());
  std::unique_ptr<Verifier> verifier = backend.MakeVerifier(
      {.vocab_size = ids.empty() ? setting.vocab_size : static_cast<int>(ids.size()),
       .max_rows = limits.max_logits_rows,
       .max_top_tokens = max_nodes,
       .max_drawn_rows = setting.draws_on_device ? max_nodes : 0,
       .drawn_vocab_size = setting.vocab_size});
  auto model = std::make_unique<AutoregressiveDrafter>(std::move(network), std::move(verifier),
                                                       target.features(), setting);
  loaded_ = model.get();
  const auto* hybrid = std::get_if<HybridOptions>(&options_.method);
  if (hybrid == nullptr) return model;
  return std::make_unique<HybridDrafter>(
      std::make_unique<SuffixDrafter>(hybrid->suffix, options_.num_speculative_tokens),
      std::move(model), kEnoughOfPath * setting.max_depth);
}

std::unique_ptr<DraftNetwork> ModelDrafterSource::LoadNetwork(const Transformer& target, Ops& ops,
                                                              const TransformerLimits& limits,
                                                              DType dtype) {
  const bool is_tied = model_ && model_->tie_word_embeddings;
  const ModelFormats formats = model_options_.quantization
                                   ? MakeFormats(*model_options_.quantization, dtype, is_tied)
                                   : FollowFormats(target_quantization_, dtype, is_tied);
  if (model_) return LoadModel(formats, ops, limits);
  if (head_ != nullptr) {
    DraftHeadWeights weights = head_->Load(formats, vocabulary_, ops);
    return std::make_unique<HeadNetwork>(head_->spec(), std::move(weights), target, ops, limits);
  }
  if (model_options_.method == ModelMethod::kMedusa) {
    return std::make_unique<MedusaNetwork>(
        MedusaNetwork::Directories{model_options_.model, target_directory_}, target, formats,
        vocabulary_, ops, limits.max_logits_rows);
  }
  if (LstmNetwork::IsIn(model_options_.model)) {
    return std::make_unique<LstmNetwork>(model_options_.model, target, formats, vocabulary_, ops,
                                         limits.max_logits_rows);
  }
  return std::make_unique<MlpNetwork>(model_options_.model, target, formats, vocabulary_, ops,
                                      limits.max_logits_rows);
}

std::unique_ptr<DraftNetwork> ModelDrafterSource::LoadModel(const ModelFormats& formats, Ops& ops,
                                                            const TransformerLimits& limits) {
  Checkpoint checkpoint(model_options_.model);
  std::vector<TokenId> target_ids;
  VocabularyRows rows;
  if (model_options_.vocabulary_bridge) {
    // Rows in the order of the target's ids: no token is translated after this.
    rows.embedding = model_options_.vocabulary_bridge->draft_ids;
    target_ids = model_options_.vocabulary_bridge->shared_ids;
  } else {
    rows.embedding.resize(model_->vocab_size);
    std::iota(rows.embedding.begin(), rows.embedding.end(), 0);
  }
  const auto num_tokens =
      static_cast<int>(target_ids.empty() ? rows.embedding.size() : target_ids.size());
  vocabulary_.Choose(num_tokens, target_ids);
  for (TokenId token : target_ids) rows.head.push_back(rows.embedding[token]);
  ModelWeights weights =
      LoadWeights(*model_, checkpoint, formats, ops, target_ids.empty() ? nullptr : &rows);
  return std::make_unique<ModelNetwork>(*std::exchange(model_, {}), std::move(weights),
                                        std::move(target_ids), ops, limits);
}

}  // namespace forerun
