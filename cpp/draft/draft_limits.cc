#include "cpp/draft/draft_limits.h"

#include <algorithm>

#include "cpp/draft/neural/tree_shape.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

constexpr int kNgramTokens = 5;
constexpr int kGrammarTokens = 16;
constexpr int kChainTokens = 4;
constexpr int kTreeNodes = 16;
constexpr int kTreeDepth = 6;
constexpr int kHybridTokens = 24;

int UsualTokens(std::monostate) { return 0; }
int UsualTokens(const NgramOptions&) { return kNgramTokens; }
int UsualTokens(const SuffixOptions& options) { return options.max_tree_depth; }
int UsualTokens(const GrammarOptions&) { return kGrammarTokens; }
int UsualTokens(const ModelDrafterOptions& options) {
  if (!options.speculative_token_tree.empty()) {
    return static_cast<int>(options.speculative_token_tree.size());
  }
  return options.draft_tree_width > 1 ? kTreeNodes : kChainTokens;
}
int UsualTokens(const HybridOptions&) { return kHybridTokens; }

}  // namespace

int MaxDraftTokens(const SpeculativeOptions& options) {
  const int usual =
      std::visit([](const auto& method) { return UsualTokens(method); }, options.method);
  return usual == 0 ? 0 : options.num_speculative_tokens.value_or(usual);
}

int MaxModelPath(const SpeculativeOptions& options) {
  const ModelDrafterOptions* model = FindModelOptions(options.method);
  FORERUN_CHECK(model != nullptr, "no model");
  if (const TreeShape shape(model->speculative_token_tree); !shape.empty()) return shape.depth();
  const int num_tokens = MaxDraftTokens(options);
  const bool is_tree = model->draft_tree_width > 1;
  const bool is_hybrid = std::holds_alternative<HybridOptions>(options.method);
  const int usual = is_tree ? kTreeDepth : is_hybrid ? kChainTokens : num_tokens;
  return std::min(num_tokens, model->draft_tree_depth.value_or(usual));
}

}  // namespace forerun
