// Draft trees in the engine: what is moved, counted and cut.
#include <gtest/gtest.h>

#include <set>

#include "cpp/engine/engine_core.h"
#include "tests/cpp/testing/scripted_drafter.h"
#include "tests/cpp/testing/scripted_executor.h"

namespace forerun {
namespace {

using testing::ScriptedDrafter;
using testing::ScriptedExecutor;

constexpr int kVocabSize = 16;

// Counts upwards without end: 1, 2, ... 15, 1, 2, ...
TokenId Successor(TokenId token) { return token % (kVocabSize - 1) + 1; }

std::vector<float> CountingLogits(std::span<const TokenId> prefix) {
  std::vector<float> logits(kVocabSize, 0.0f);
  logits[Successor(prefix.back())] = 9.0f;
  return logits;
}

SamplingParams Greedy(int max_tokens) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = max_tokens;
  return params;
}

// Always proposes the same tree, whose nodes in `right` guess right.
class FixedTree {
 public:
  FixedTree(std::vector<std::int32_t> parents, std::set<int> right)
      : parents_(std::move(parents)),
        right_(std::move(right)),
        drafter_([this](auto text) { return Guess(text); },
                 [this](int max_nodes) { return Shape(max_nodes); }) {}

  ScriptedDrafter& drafter() { return drafter_; }

 private:
  std::vector<std::int32_t> Shape(int max_nodes) {
    next_node_ = 0;
    std::vector<std::int32_t> parents = parents_;
    parents.resize(std::min(parents.size(), static_cast<std::size_t>(max_nodes)));
    return parents;
  }
  TokenId Guess(std::span<const TokenId> text) {
    return right_.contains(next_node_++) ? Successor(text.back()) : TokenId{0};
  }

  const std::vector<std::int32_t> parents_;
  const std::set<int> right_;
  int next_node_ = 0;
  ScriptedDrafter drafter_;
};

class DraftTreeTest : public ::testing::Test {
 protected:
  DraftTreeTest() {
    config_.max_model_len = 64;
    config_.num_blocks = 32;
    config_.block_size = 4;
    config_.max_num_seqs = 4;
    config_.max_num_batched_tokens = 32;
    config_.num_speculative_tokens = 6;
    config_.adaptive = false;
    config_.eos_token_ids = {0};
    config_.check_invariants = true;
  }

  std::vector<TokenId> Run(EngineCore& engine, std::vector<TokenId> prompt, int max_tokens) {
    engine.Submit(prompt, Greedy(max_tokens));
    std::vector<TokenId> tokens;
    while (engine.HasUnfinished()) {
      for (const RequestUpdate& update : engine.Step()) {
        tokens.insert(tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
        if (update.metrics != nullptr) metrics_ = *update.metrics;
        num_cached_ = update.num_cached_tokens;
      }
    }
    return tokens;
  }
  static std::vector<TokenId> Count(TokenId first, int count) {
    std::vector<TokenId> tokens;
    for (; count > 0; --count, first = Successor(first)) tokens.push_back(first);
    return tokens;
  }

  EngineConfig config_;
  ScriptedExecutor executor_{kVocabSize, 32, 4, CountingLogits};
  RequestMetrics metrics_;
  int num_cached_ = 0;
};

// The right path is 1, 3, 4: behind a wrong node and around a wrong branch.
const std::vector<std::int32_t> kParents = {-1, -1, 0, 1, 3, 1};
const std::set<int> kRight = {1, 3, 4};

TEST_F(DraftTreeTest, AnAcceptedPathIsMovedBehindTheContextAndCountedByDepth) {
  FixedTree tree(kParents, kRight);
  EngineCore engine(config_, executor_, &tree.drafter());
  EXPECT_EQ(Run(engine, {1, 2}, 17), Count(3, 17));
  // The prompt's pass emits one token, three passes with six nodes each emit four. Four tokens
  // before the end three nodes have room, and one of them is right; then one, and then none.
  EXPECT_EQ(metrics_.num_target_passes, 1 + 3 + 1 + 1 + 1);
  EXPECT_EQ(metrics_.spec_decode.num_drafts, 5);
  EXPECT_EQ(metrics_.spec_decode.num_draft_tokens, 6 + 6 + 6 + 3 + 1);
  EXPECT_EQ(metrics_.spec_decode.num_accepted_tokens, 3 + 3 + 3 + 1);
  EXPECT_EQ(metrics_.spec_decode.num_accepted_tokens_per_pos,
            (std::vector<std::int64_t>{4, 3, 3, 0, 0, 0}));
  EXPECT_GT(executor_.num_moved(), 0);
}

TEST_F(DraftTreeTest, AnAcceptedPathOfFirstChildrenMovesNothing) {
  FixedTree tree({-1, 0, -1, 1, 0}, {0, 1, 3});
  EngineCore engine(config_, executor_, &tree.drafter());
  EXPECT_EQ(Run(engine, {1, 2}, 17), Count(3, 17));
  EXPECT_GT(executor_.num_trees(), 0);
  EXPECT_EQ(executor_.num_moved(), 0);
}

TEST_F(DraftTreeTest, WhatAMovedPathLeftBehindIsSharedAsAPrefix) {
  FixedTree tree(kParents, kRight);
  EngineCore engine(config_, executor_, &tree.drafter());
  std::vector<TokenId> text = {1, 2};
  const std::vector<TokenId> output = Run(engine, text, 20);
  text.insert(text.end(), output.begin(), output.end());
  EXPECT_EQ(Run(engine, text, 10), Count(Successor(text.back()), 10));
  EXPECT_EQ(num_cached_, 20);  // five blocks: of 22 tokens, 21 were computed
}

TEST_F(DraftTreeTest, AShortBudgetTakesTheFirstNodes) {
  config_.max_num_batched_tokens = 5;
  FixedTree tree(kParents, kRight);
  EngineCore engine(config_, executor_, &tree.drafter());
  EXPECT_EQ(Run(engine, {1, 2}, 17), Count(3, 17));
  EXPECT_LE(executor_.max_rows_seen(), 5);
  // Nodes 0 to 3 fit: two of them are accepted, until the end is near.
  EXPECT_EQ(metrics_.spec_decode.num_accepted_tokens_per_pos[1], 4);
  EXPECT_EQ(metrics_.spec_decode.num_accepted_tokens_per_pos[2], 0);
}

TEST_F(DraftTreeTest, NodesNeverNeedMoreSlotsThanTheRequestMayHave) {
  config_.num_blocks = 16;  // one request of full length
  FixedTree tree({-1, -1, -1, -1, -1, 4}, {4, 5});
  EngineCore engine(config_, executor_, &tree.drafter());
  EXPECT_EQ(Run(engine, std::vector<TokenId>(54, 1), 100), Count(2, 10));
}

TEST_F(DraftTreeTest, AFailureWhileMovingChangesNothing) {
  FixedTree tree(kParents, kRight);
  for (int failing_call = 0; failing_call < 8; ++failing_call) {
    ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size, CountingLogits);
    EngineCore engine(config_, executor, &tree.drafter());
    engine.Submit(std::vector<TokenId>{1, 2}, Greedy(17));
    executor.FailAfter(failing_call);
    std::vector<TokenId> tokens;
    int num_failures = 0;
    while (engine.HasUnfinished()) {
      try {
        for (const RequestUpdate& update : engine.Step()) {
          tokens.insert(tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
        }
      } catch (const std::runtime_error&) {
        ++num_failures;
      }
    }
    EXPECT_EQ(num_failures, 1) << failing_call;
    EXPECT_EQ(tokens, Count(3, 17)) << failing_call;
  }
}

}  // namespace
}  // namespace forerun
