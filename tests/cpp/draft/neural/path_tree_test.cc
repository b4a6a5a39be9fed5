// Which paths of a model's tree are continued, and which become the draft.
#include "cpp/draft/neural/path_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace forerun {
namespace {

// Builds a tree of random probabilities.
void GrowAtRandom(std::mt19937& random, const PathTree::Limits& limits, int depth, PathTree& tree) {
  std::uniform_real_distribution<float> probability(0.05f, 1.0f);
  tree.Clear();
  std::vector<int> parents = {kDraftRoot};
  for (int level = 0; level < depth && !parents.empty(); ++level) {
    for (int parent : parents) {
      for (TokenId token = 0; token < limits.width; ++token) {
        tree.Add(token, parent, probability(random));
      }
    }
    tree.OpenNext(limits);
    parents.assign(tree.open().begin(), tree.open().end());
  }
}

TEST(PathTreeTest, TheDraftHasTheMostProbableNodesAfterTheirParents) {
  std::mt19937 random(1);
  for (int example = 0; example < 500; ++example) {
    const int max_nodes = 1 + static_cast<int>(random() % 20);
    const int width = 1 + static_cast<int>(random() % 5);
    PathTree tree;
    GrowAtRandom(random, {width, max_nodes - 1, max_nodes, 0.0}, 5, tree);
    DraftTree draft;
    tree.WriteBest(max_nodes, draft);
    ASSERT_EQ(draft.size(), std::min(max_nodes, tree.num_nodes()));
    ASSERT_TRUE(draft.is_tree());
    std::vector<double> all, drafted;
    for (int i = 0; i < tree.num_nodes(); ++i) all.push_back(tree.node(i).path_probability);
    for (int i = 0; i < draft.size(); ++i) {
      double probability = 1.0;
      for (int n = i; n != kDraftRoot; n = draft.parents[n]) probability *= draft.confidence[n];
      drafted.push_back(probability);
    }
    std::ranges::sort(all, std::greater<>());
    for (int i = 0; i < draft.size(); ++i) ASSERT_NEAR(drafted[i], all[i], 1e-6);
  }
}

TEST(PathTreeTest, NoMoreRowsAreRunThanAllowed) {
  std::mt19937 random(2);
  for (int example = 0; example < 300; ++example) {
    const int max_rows = static_cast<int>(random() % 9);
    PathTree tree;
    GrowAtRandom(random, {3, max_rows, 40, 0.0}, 6, tree);
    EXPECT_LE(std::ssize(tree.row_parents()), max_rows);
    for (std::size_t row = 0; row < tree.row_parents().size(); ++row) {
      EXPECT_LT(tree.row_parents()[row], static_cast<int>(row));
    }
  }
}

TEST(PathTreeTest, WhatCannotEnterTheDraftIsNotContinued) {
  PathTree tree;
  tree.Add(0, kDraftRoot, 0.6f);
  tree.Add(1, kDraftRoot, 0.3f);
  tree.Add(2, kDraftRoot, 0.1f);
  tree.OpenNext({3, 10, 2, 0.0});
  // Children of the second best can at most be as good as it is.
  EXPECT_EQ(std::vector<int>(tree.open().begin(), tree.open().end()), std::vector<int>{0});
}

TEST(PathTreeTest, ImprobablePathsAreNotContinued) {
  PathTree tree;
  tree.Add(0, kDraftRoot, 0.6f);
  tree.Add(1, kDraftRoot, 0.3f);
  tree.OpenNext({3, 10, 10, 0.4});
  EXPECT_EQ(std::vector<int>(tree.open().begin(), tree.open().end()), std::vector<int>{0});
  tree.Add(2, 0, 0.5f);
  tree.OpenNext({3, 10, 10, 0.4});
  EXPECT_TRUE(tree.open().empty());
}

TEST(PathTreeTest, ACandidateAddedTwiceIsOneNode) {
  PathTree tree;
  EXPECT_EQ(tree.AddOrRaise(4, kDraftRoot, 0.5f), 0);
  EXPECT_EQ(tree.AddOrRaise(5, 0, 0.5f), 1);
  EXPECT_EQ(tree.AddOrRaise(4, kDraftRoot, 0.8f), 0);
  EXPECT_EQ(tree.AddOrRaise(5, kDraftRoot, 0.1f), 2);
  EXPECT_EQ(tree.num_nodes(), 3);
  EXPECT_NEAR(tree.node(0).path_probability, 0.8, 1e-6);
  EXPECT_NEAR(tree.node(1).path_probability, 0.4, 1e-6);
  EXPECT_EQ(tree.EndOfBestPath(), 1);
  std::vector<TokenId> path;
  tree.PathTo(1, path);
  EXPECT_EQ(path, (std::vector<TokenId>{4, 5}));
}

}  // namespace
}  // namespace forerun
