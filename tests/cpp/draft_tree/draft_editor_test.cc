#include "cpp/draft_tree/draft_editor.h"

#include <gtest/gtest.h>

#include <random>

#include "forerun/error.h"
#include "tests/cpp/testing/random_tree.h"

namespace forerun {
namespace {

// A node's token and confidence say its number.
DraftTree Numbered(const std::vector<std::int32_t>& parents) {
  DraftTree draft;
  for (const std::int32_t parent : parents) {
    draft.Append(100 + draft.size(), parent, static_cast<float>(draft.size()));
  }
  return draft;
}

TEST(DraftEditorTest, SelectRenumbersTheParents) {
  DraftTree draft = Numbered({-1, -1, 1, 0, 2});
  DraftEditor().Select(std::vector<std::int32_t>{1, 0, 2}, draft);
  EXPECT_EQ(draft.tokens, (std::vector<TokenId>{101, 100, 102}));
  EXPECT_EQ(draft.parents, (std::vector<std::int32_t>{-1, -1, 0}));
  EXPECT_EQ(draft.confidence, (std::vector<float>{1, 0, 2}));
}

TEST(DraftEditorTest, ANodeWithoutItsParentIsABug) {
  DraftTree draft = Numbered({-1, 0, 1});
  EXPECT_THROW(DraftEditor().Select(std::vector<std::int32_t>{0, 2}, draft), InternalError);
}

TEST(DraftEditorTest, DepthFirstPutsTheFirstChildrenInARow) {
  DraftTree draft = Numbered({-1, -1, 0, 1, 0, 2});
  DraftEditor().OrderDepthFirst(draft);
  EXPECT_EQ(draft.tokens, (std::vector<TokenId>{100, 102, 105, 104, 101, 103}));
  EXPECT_EQ(draft.parents, (std::vector<std::int32_t>{-1, 0, 1, 0, -1, 4}));
}

TEST(DraftEditorTest, RowsOfSiblingsMoveWithTheirParents) {
  DraftTree draft = Numbered({-1, -1, 1, 0, 2});
  // The root's children and those of nodes 1 and 2 were drawn; node 0's child is certain.
  for (int node : {kDraftRoot, 1, 2}) {
    const std::span<float> row = draft.AddRowAfter(node, 2);
    row[0] = static_cast<float>(node);
    row[1] = 7;
  }
  DraftEditor().OrderDepthFirst(draft);
  EXPECT_EQ(draft.tokens, (std::vector<TokenId>{100, 103, 101, 102, 104}));
  EXPECT_EQ(draft.RowAfter(kDraftRoot)[0], -1);
  EXPECT_EQ(draft.RowAfter(2)[0], 1);
  EXPECT_EQ(draft.RowAfter(3)[0], 2);
  EXPECT_EQ(draft.RowAfter(3)[1], 7);
  for (int node : {0, 1, 4}) EXPECT_TRUE(draft.RowAfter(node).empty()) << node;
}

TEST(DraftEditorTest, DepthFirstKeepsTheTreeAndTheOrderOfSiblings) {
  std::mt19937 random(3);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  DraftEditor editor;
  for (int trial = 0; trial < 300; ++trial) {
    const DraftTree before = Numbered(forerun::testing::RandomParents(below(30), below));
    DraftTree draft = before;
    editor.OrderDepthFirst(draft);
    ASSERT_EQ(draft.size(), before.size());
    std::vector<int> seen(before.size(), 0);
    std::vector<int> previous(before.size() + 1, -1);  // by old parent + 1
    for (int i = 0; i < draft.size(); ++i) {
      const int old = draft.tokens[i] - 100;
      ++seen.at(old);
      const int parent = draft.parents[i];
      ASSERT_LT(parent, i);
      ASSERT_EQ(parent < 0 ? -1 : draft.tokens[parent] - 100, before.parents[old]);
      int& last = previous[before.parents[old] + 1];
      ASSERT_LT(last, old);
      last = old;
      // Depth first: the node before is the parent, or a leaf.
      if (i > 0 && parent != i - 1) {
        for (int later = i; later < draft.size(); ++later) ASSERT_NE(draft.parents[later], i - 1);
      }
    }
    for (int count : seen) ASSERT_EQ(count, 1);
  }
}

}  // namespace
}  // namespace forerun
