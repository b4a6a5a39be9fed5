#include "cpp/draft/neural/model_drafter.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "cpp/draft/hybrid.h"
#include "cpp/draft/neural/autoregressive.h"
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

constexpr int kChainTokens = 4;
constexpr int kTreeNodes = 16;
constexpr int kTreeDepth = 6;
constexpr int kHybridTokens = 24;
// Of the longest path that the model could draft: where the index expects so much, it is enough.
constexpr double kEnoughOfPath = 0.6;

DraftHeadKind KindOf(SpeculativeMethod method) {
  switch (method) {
    case SpeculativeMethod::kEagle:
      return DraftHeadKind::kEagle;
    case SpeculativeMethod::kEagle3:
      return DraftHeadKind::kEagle3;
    default:
      return DraftHeadKind::kMtp;
  }
}

bool IsHead(SpeculativeMethod method) {
  return method == SpeculativeMethod::kEagle || method == SpeculativeMethod::kEagle3 ||
         method == SpeculativeMethod::kMtp;
}

int MaxDepth(const SpeculativeOptions& options) {
  const TreeShape shape(options.speculative_token_tree);
  if (!shape.empty()) return shape.depth();
  const int num_tokens = NumModelDraftTokens(options);
  const bool is_tree = options.draft_tree_width > 1;
  const int usual = is_tree ? kTreeDepth : options.hybrid ? kChainTokens : num_tokens;
  return std::min(num_tokens, options.draft_tree_depth.value_or(usual));
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

// A draft as long as was asked for, or none.
void CheckDepth(const SpeculativeOptions& options, int max_depth) {
  const std::string expected =
      "at most " + std::to_string(max_depth) + ", as the drafter has heads";
  if (const TreeShape shape(options.speculative_token_tree); shape.depth() > max_depth) {
    throw InvalidArgument("speculative_token_tree",
                          "a path of " + std::to_string(shape.depth()) + " ranks", expected);
  }
  if (options.draft_tree_depth && *options.draft_tree_depth > max_depth) {
    throw InvalidArgument("draft_tree_depth", std::to_string(*options.draft_tree_depth), expected);
  }
  const bool is_chain =
      options.draft_tree_width == 1 && !options.hybrid && options.speculative_token_tree.empty();
  if (is_chain && options.num_speculative_tokens && *options.num_speculative_tokens > max_depth) {
    throw InvalidArgument("num_speculative_tokens", std::to_string(*options.num_speculative_tokens),
                          expected);
  }
}

}  // namespace

int NumModelDraftTokens(const SpeculativeOptions& options) {
  if (const auto& tree = options.speculative_token_tree; !tree.empty()) {
    return static_cast<int>(tree.size());
  }
  const int usual = options.hybrid                 ? kHybridTokens
                    : options.draft_tree_width > 1 ? kTreeNodes
                                                   : kChainTokens;
  return options.num_speculative_tokens.value_or(usual);
}

int NumModelLevelRows(const SpeculativeOptions& options) {
  return std::max(options.draft_tree_width, TreeShape(options.speculative_token_tree).most_rows());
}

ModelDrafterSource::ModelDrafterSource(const SpeculativeOptions& options, const ModelSpec& target,
                                       const std::string& target_directory)
    : options_(options),
      target_hidden_size_(target.hidden_size),
      target_directory_(target_directory) {
  FORERUN_CHECK(IsModel(options.method), "no model");
  if (options.method == SpeculativeMethod::kDraftModel) {
    model_ = ReadModelSpec(options.model);
    if (options.vocabulary_bridge) {
      CheckBridge(*options.vocabulary_bridge, model_->vocab_size, target.vocab_size);
    } else if (model_->vocab_size != target.vocab_size) {
      throw CheckpointError("vocab_size",
                            std::to_string(model_->vocab_size) + " of the drafter " + options.model,
                            std::to_string(target.vocab_size) +
                                ", the vocabulary of the target, or a vocabulary_bridge");
    }
  } else if (IsHead(options.method)) {
    head_ = std::make_unique<DraftHeadReader>(
        KindOf(options.method), options.model,
        DraftHeadOverrides{options.aux_hidden_state_layer_ids, options.norm_before_residual,
                           options.norm_output, options.norm_target_state},
        target, target_directory);
    features_ = head_->spec().features;
  } else {
    features_.final_norm = true;
  }
}

std::int64_t ModelDrafterSource::block_bytes(DType dtype, int block_size) const {
  std::int64_t num_bytes = features_.num_bytes(target_hidden_size_) * block_size;
  if (head_ != nullptr) {
    num_bytes += MakeKvLayout(head_->spec().layers, dtype, block_size).block_bytes();
  }
  if (model_) num_bytes += MakeKvLayout(*model_, dtype, block_size).block_bytes();
  return num_bytes;
}

std::unique_ptr<Drafter> ModelDrafterSource::Load(const Transformer& target, Ops& ops,
                                                  const TransformerLimits& limits,
                                                  DraftRecorder* recorder) {
  AutoregressiveSetting setting;
  setting.width = options_.draft_tree_width;
  setting.shape = TreeShape(options_.speculative_token_tree);
  setting.max_depth = MaxDepth(options_);
  setting.is_sampled = options_.draft_sample_method == DraftSampleMethod::kProbabilistic;
  setting.vocab_size = target.vocab_size();
  setting.max_rows = limits.max_rows;
  setting.num_blocks = limits.num_blocks;
  setting.recorder = recorder;
  std::unique_ptr<DraftNetwork> network = LoadNetwork(target, ops, limits);
  CheckDepth(options_, network->max_depth());
  auto model =
      std::make_unique<AutoregressiveDrafter>(std::move(network), target.features(), setting);
  if (!options_.hybrid) return model;
  return std::make_unique<HybridDrafter>(std::make_unique<SuffixDrafter>(options_),
                                         std::move(model), kEnoughOfPath * setting.max_depth);
}

std::unique_ptr<DraftNetwork> ModelDrafterSource::LoadNetwork(const Transformer& target, Ops& ops,
                                                              const TransformerLimits& limits) {
  if (model_) {
    Checkpoint checkpoint(options_.model);
    std::vector<TokenId> target_ids;
    VocabularyRows rows;
    if (options_.vocabulary_bridge) {
      // Rows in the order of the target's ids: no token is translated after this.
      rows.embedding = options_.vocabulary_bridge->draft_ids;
      target_ids = options_.vocabulary_bridge->shared_ids;
      for (TokenId token : target_ids) rows.head.push_back(rows.embedding[token]);
    }
    ModelWeights weights = LoadWeights(*model_, checkpoint, target.dtype(), ops,
                                       options_.vocabulary_bridge ? &rows : nullptr);
    return std::make_unique<ModelNetwork>(*std::exchange(model_, {}), std::move(weights),
                                          std::move(target_ids), ops, limits);
  }
  if (head_ != nullptr) {
    DraftHeadWeights weights = head_->Load(target.dtype(), ops);
    return std::make_unique<HeadNetwork>(head_->spec(), std::move(weights), target, ops, limits);
  }
  if (options_.method == SpeculativeMethod::kMedusa) {
    return std::make_unique<MedusaNetwork>(options_.model, target, target_directory_, ops,
                                           limits.max_rows);
  }
  if (LstmNetwork::IsIn(options_.model)) {
    return std::make_unique<LstmNetwork>(options_.model, target, ops, limits.max_rows);
  }
  return std::make_unique<MlpNetwork>(options_.model, target, ops, limits.max_rows);
}

}  // namespace forerun
