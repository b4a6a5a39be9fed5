// Draft trees in the engine: what is moved, counted and cut.
#include <gtest/gtest.h>

#include <set>

#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/scripted_drafter.h"

namespace forerun {
namespace {

using testing::CountingEngineTest;
using testing::CountingLogits;
using testing::Finished;
using testing::Greedy;
using testing::kVocabSize;
using testing::RunToEnd;
using testing::ScriptedDrafter;
using testing::ScriptedExecutor;
using testing::Successor;

// Always proposes the same tree, whose nodes in `right` have the right token.
class FixedTree {
 public:
  FixedTree(std::vector<std::int32_t> parents, std::set<int> right)
      : parents_(std::move(parents)),
        right_(std::move(right)),
        drafter_([this](auto text) { return NextToken(text); },
                 [this](int max_nodes) { return Shape(max_nodes); }) {}

  ScriptedDrafter& drafter() { return drafter_; }

 private:
  std::vector<std::int32_t> Shape(int max_nodes) {
    next_node_ = 0;
    std::vector<std::int32_t> parents = parents_;
    parents.resize(std::min(parents.size(), static_cast<std::size_t>(max_nodes)));
    return parents;
  }
  TokenId NextToken(std::span<const TokenId> text) {
    return right_.contains(next_node_++) ? Successor(text.back()) : TokenId{0};
  }

  const std::vector<std::int32_t> parents_;
  const std::set<int> right_;
  int next_node_ = 0;
  ScriptedDrafter drafter_;
};

class DraftTreeTest : public CountingEngineTest {
 protected:
  DraftTreeTest() { config_.num_speculative_tokens = 6; }

  Finished Run(EngineCore& engine, const std::vector<TokenId>& prompt, int max_tokens) {
    const RequestId id = engine.Submit(prompt, Greedy(max_tokens));
    return RunToEnd(engine).at(id);
  }
  static std::vector<TokenId> Count(TokenId first, int count) {
    std::vector<TokenId> tokens;
    for (; count > 0; --count, first = Successor(first)) tokens.push_back(first);
    return tokens;
  }
};

// The right path is 1, 3, 4: after a wrong node and around a wrong branch.
const std::vector<std::int32_t> kParents = {-1, -1, 0, 1, 3, 1};
const std::set<int> kRight = {1, 3, 4};

TEST_F(DraftTreeTest, AnAcceptedPathIsMovedRightAfterTheContextAndCountedByDepth) {
  FixedTree tree(kParents, kRight);
  testing::TestEngine engine(config_, executor_, &tree.drafter());
  const Finished result = Run(engine, {1, 2}, 17);
  EXPECT_EQ(result.tokens, Count(3, 17));
  // The prompt's pass emits one token, three passes with six nodes each emit four. Four tokens
  // before the end three nodes have room, and one of them is right; then one, and then none.
  EXPECT_EQ(result.metrics.num_target_passes, 1 + 3 + 1 + 1 + 1);
  EXPECT_EQ(result.metrics.spec_decode.num_drafts, 5);
  EXPECT_EQ(result.metrics.spec_decode.num_draft_tokens, 6 + 6 + 6 + 3 + 1);
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens, 3 + 3 + 3 + 1);
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens_per_pos,
            (std::vector<std::int64_t>{4, 3, 3, 0, 0, 0}));
  EXPECT_GT(executor_.num_moved(), 0);
}

TEST_F(DraftTreeTest, AnAcceptedPathOfFirstChildrenMovesNothing) {
  FixedTree tree({-1, 0, -1, 1, 0}, {0, 1, 3});
  testing::TestEngine engine(config_, executor_, &tree.drafter());
  EXPECT_EQ(Run(engine, {1, 2}, 17).tokens, Count(3, 17));
  EXPECT_GT(executor_.num_trees(), 0);
  EXPECT_EQ(executor_.num_moved(), 0);
}

TEST_F(DraftTreeTest, BlocksOfAMovedPathAreSharedAsAPrefix) {
  FixedTree tree(kParents, kRight);
  testing::TestEngine engine(config_, executor_, &tree.drafter());
  std::vector<TokenId> text = {1, 2};
  const std::vector<TokenId> output = Run(engine, text, 20).tokens;
  text.insert(text.end(), output.begin(), output.end());
  const Finished result = Run(engine, text, 10);
  EXPECT_EQ(result.tokens, Count(Successor(text.back()), 10));
  EXPECT_EQ(result.last.num_cached_tokens, 20);  // five blocks: of 22 tokens, 21 were computed
}

TEST_F(DraftTreeTest, AShortBudgetTakesTheFirstNodes) {
  config_.max_num_batched_tokens = 5;
  FixedTree tree(kParents, kRight);
  testing::TestEngine engine(config_, executor_, &tree.drafter());
  const Finished result = Run(engine, {1, 2}, 17);
  EXPECT_EQ(result.tokens, Count(3, 17));
  EXPECT_LE(executor_.max_rows_seen(), 5);
  // Nodes 0 to 3 fit: two of them are accepted, until the end is near.
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens_per_pos[1], 4);
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens_per_pos[2], 0);
}

TEST_F(DraftTreeTest, NodesNeverNeedMoreSlotsThanTheRequestMayHave) {
  config_.num_blocks = 16;  // one request of full length
  FixedTree tree({-1, -1, -1, -1, -1, 4}, {4, 5});
  testing::TestEngine engine(config_, executor_, &tree.drafter());
  EXPECT_EQ(Run(engine, std::vector<TokenId>(54, 1), 100).tokens, Count(2, 10));
}

TEST_F(DraftTreeTest, AFailureWhileMovingChangesNothing) {
  FixedTree tree(kParents, kRight);
  for (int failing_call = 0; failing_call < 8; ++failing_call) {
    ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size, CountingLogits);
    testing::TestEngine engine(config_, executor, &tree.drafter());
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
