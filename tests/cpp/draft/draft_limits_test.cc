#include "cpp/draft/draft_limits.h"

#include <gtest/gtest.h>

namespace forerun {
namespace {

TEST(DraftLimitsTest, EachMethodHasADefaultNumberOfTokens) {
  SpeculativeOptions options;
  EXPECT_EQ(MaxDraftTokens(options), 0);
  options.method = NgramOptions();
  EXPECT_EQ(MaxDraftTokens(options), 5);
  options.method = SuffixOptions{.max_tree_depth = 7};
  EXPECT_EQ(MaxDraftTokens(options), 7);
  options.method = GrammarOptions();
  EXPECT_EQ(MaxDraftTokens(options), 16);
  options.method = ModelDrafterOptions();
  EXPECT_EQ(MaxDraftTokens(options), 4);
  options.method = ModelDrafterOptions{.draft_tree_width = 2};
  EXPECT_EQ(MaxDraftTokens(options), 16);
  options.method = ModelDrafterOptions{.speculative_token_tree = {{0}, {1}, {0, 0}}};
  EXPECT_EQ(MaxDraftTokens(options), 3);
  options.method = HybridOptions();
  EXPECT_EQ(MaxDraftTokens(options), 24);
}

TEST(DraftLimitsTest, AGivenNumberOfTokensReplacesTheDefault) {
  SpeculativeOptions options;
  options.num_speculative_tokens = 2;
  EXPECT_EQ(MaxDraftTokens(options), 0);
  options.method = SuffixOptions();
  EXPECT_EQ(MaxDraftTokens(options), 2);
}

TEST(DraftLimitsTest, PathsOfAModelAreShorterInTreesAndHybrids) {
  SpeculativeOptions options;
  options.num_speculative_tokens = 9;
  options.method = ModelDrafterOptions();
  EXPECT_EQ(MaxModelPath(options), 9);
  options.method = ModelDrafterOptions{.draft_tree_width = 2};
  EXPECT_EQ(MaxModelPath(options), 6);
  options.method = HybridOptions();
  EXPECT_EQ(MaxModelPath(options), 4);
  options.method = ModelDrafterOptions{.draft_tree_depth = 20};
  EXPECT_EQ(MaxModelPath(options), 9);
  options.method = ModelDrafterOptions{.speculative_token_tree = {{0}, {1}, {0, 0}}};
  EXPECT_EQ(MaxModelPath(options), 2);
}

}  // namespace
}  // namespace forerun
