// Draft trees of fixed shape: the paths that form one, and the drafts of that shape.
#include "cpp/draft/neural/tree_shape.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "cpp/draft/neural/autoregressive.h"
#include "cpp/kv/block_pool.h"
#include "cpp/kv/block_table.h"
#include "forerun/error.h"
#include "tests/cpp/testing/random_tree_shape.h"
#include "tests/cpp/testing/scripted_network.h"
#include "tests/cpp/testing/test_engine.h"

namespace forerun {
namespace {

using Path = std::vector<int>;

TEST(TreeShapeTest, ChildrenAreFoundByRank) {
  const std::vector<Path> paths = {{1}, {0, 2}, {0}, {0, 0}, {1, 0}, {0, 2, 0}};
  const TreeShape shape(paths);
  EXPECT_EQ(shape.size(), 6);
  EXPECT_EQ(shape.depth(), 3);
  EXPECT_EQ(shape.most_rows(), 2);
  EXPECT_FALSE(shape.is_chain());
  EXPECT_EQ(shape.NumRanked(kDraftRoot), 2);
  const int best = shape.Child(kDraftRoot, 0);
  EXPECT_EQ(shape.NumRanked(best), 3);
  EXPECT_EQ(shape.Child(best, 1), kNoNode);
  EXPECT_EQ(shape.NumRanked(shape.Child(best, 0)), 0);
  EXPECT_EQ(shape.NumRanked(shape.Child(best, 2)), 1);
  EXPECT_EQ(shape.Child(kDraftRoot, 2), kNoNode);
}

TEST(TreeShapeTest, AChainIsAChainOfAnyRanks) {
  EXPECT_TRUE(TreeShape().is_chain());
  EXPECT_TRUE(TreeShape().empty());
  EXPECT_TRUE(TreeShape(std::vector<Path>{{0}, {0, 1}, {0, 1, 0}}).is_chain());
  EXPECT_FALSE(TreeShape(std::vector<Path>{{0}, {1}}).is_chain());
}

TEST(TreeShapeTest, PathsThatFormNoTreeAreRefused) {
  for (const std::vector<Path>& paths : std::vector<std::vector<Path>>{
           {{}}, {{0}, {0}}, {{0, 0}}, {{0}, {1, 0}}, {{-1}}, {{TreeShape::kMostRanks}}}) {
    EXPECT_THROW(TreeShape{paths}, InvalidArgument);
  }
}

// The network's candidates after any text, best first, are known, and so is the expected tree.
TEST(TreeShapeTest, ADraftHasThePathsOfTheShape) {
  constexpr int kVocabSize = 13, kBlockSize = 4, kNumBlocks = 32;
  std::mt19937 random(5);
  for (int example = 0; example < 200; ++example) {
    SCOPED_TRACE(example);
    const std::vector<Path> paths = testing::RandomTreeShape(random, 12, 4, 5);
    AutoregressiveSetting setting;
    setting.shape = TreeShape(paths);
    setting.max_depth = setting.shape.depth();
    setting.vocab_size = kVocabSize;
    setting.max_rows = 32;
    setting.num_blocks = kNumBlocks;
    AutoregressiveDrafter drafter(
        std::make_unique<testing::ScriptedNetwork>(kVocabSize, kNumBlocks, kBlockSize, 1.0),
        testing::MakeDrafterVerifier(kVocabSize, setting.max_rows), nullptr, setting);
    BlockPool pool(kNumBlocks, kBlockSize, /*enable_prefix_caching=*/false);
    BlockTable table(pool);
    const std::vector<TokenId> text = {3, static_cast<TokenId>(random() % kVocabSize), 5, 7};
    ASSERT_TRUE(table.Reserve(static_cast<int>(text.size()) + setting.shape.size()));
    const SamplingRule greedy;
    const DraftRequest request = {.id = 1,
                                  .max_tokens = setting.shape.size(),
                                  .rule = greedy,
                                  .first_output_index = 0,
                                  .tokens = text,
                                  .table = &table};
    drafter.Prepare(std::span(&request, 1));
    DraftTree draft;
    drafter.Propose(request, draft);
    ASSERT_EQ(draft.size(), static_cast<int>(paths.size()));
    ASSERT_TRUE(draft.is_tree());
    std::set<Path> drafted;
    for (int node = 0; node < draft.size(); ++node) {
      Path path;
      for (int n = node; n != kDraftRoot; n = draft.parents[n]) {
        std::vector<TokenId> before = text;
        std::vector<TokenId> path_tokens;
        for (int p = draft.parents[n]; p != kDraftRoot; p = draft.parents[p]) {
          path_tokens.push_back(draft.tokens[p]);
        }
        before.insert(before.end(), path_tokens.rbegin(), path_tokens.rend());
        const std::vector<float> logits = testing::HashLogits(before, kVocabSize);
        const float own = logits[draft.tokens[n]];
        int rank = 0;
        for (int token = 0; token < kVocabSize; ++token) {
          rank += logits[token] > own || (logits[token] == own && token < draft.tokens[n]);
        }
        path.insert(path.begin(), rank);
      }
      drafted.insert(path);
    }
    EXPECT_EQ(drafted, std::set<Path>(paths.begin(), paths.end()));
  }
}

}  // namespace
}  // namespace forerun
