// Reserve, Commit, AdoptPrefix and Drop of tables that share one pool.
#include "cpp/kv/block_table.h"

#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

#include "forerun/error.h"

namespace forerun {
namespace {

using Tokens = std::vector<TokenId>;
using Blocks = std::vector<BlockId>;

constexpr int kBlockSize = 4;

Tokens Range(int first, int count) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Blocks BlocksOf(const BlockTable& table) { return {table.blocks().begin(), table.blocks().end()}; }

BlockTable TableWith(BlockPool& pool, const Tokens& tokens) {
  BlockTable table(pool);
  EXPECT_TRUE(table.Reserve(static_cast<int>(tokens.size())));
  table.Commit(tokens);
  return table;
}

TEST(BlockTableTest, ReserveTakesWhatTheTokensNeed) {
  BlockPool pool(8, kBlockSize, true);
  BlockTable table(pool);
  EXPECT_EQ(table.NumBlocksToReserve(9), 3);
  EXPECT_TRUE(table.Reserve(9));
  EXPECT_EQ(table.blocks().size(), 3u);
  EXPECT_EQ(table.num_committed(), 0);
  EXPECT_EQ(table.NumBlocksToReserve(12), 0);
  EXPECT_TRUE(table.Reserve(12));
  EXPECT_EQ(pool.num_held(), 3);
}

TEST(BlockTableTest, TrimGivesBackRoomThatIsNotNeeded) {
  BlockPool pool(8, kBlockSize, true);
  BlockTable table = TableWith(pool, Range(0, 3));
  ASSERT_TRUE(table.Reserve(13));
  EXPECT_EQ(pool.num_held(), 4);
  table.Trim(2);
  EXPECT_EQ(pool.num_held(), 2);
  table.Trim(9);
  EXPECT_EQ(pool.num_held(), 2);
  table.Trim(0);
  EXPECT_EQ(pool.num_held(), 1);
}

TEST(BlockTableTest, ATableOfLimitedLengthAllocatesItsMemoryAtOnce) {
  BlockPool pool(8, kBlockSize, true);
  for (int max_tokens : {1, 4, 13}) {
    BlockTable table(pool, max_tokens);
    const BlockId* memory = table.blocks().data();
    EXPECT_NE(memory, nullptr) << max_tokens;
    ASSERT_TRUE(table.Reserve(max_tokens));
    EXPECT_EQ(table.blocks().data(), memory) << max_tokens;
  }
}

TEST(BlockTableTest, DebugStringShowsEachBlockWithItsCommittedTokens) {
  BlockPool pool(8, kBlockSize, true);
  BlockTable table = TableWith(pool, Range(0, 6));
  ASSERT_TRUE(table.Reserve(6));
  EXPECT_EQ(table.DebugString(), "6 tokens, block size 4: 0(4) 1(2) 2(0)");
  table.Drop();
  EXPECT_EQ(table.DebugString(), "0 tokens, block size 4:");
}

TEST(BlockTableTest, ABlockOfAnotherTimeHasAnotherGeneration) {
  BlockPool pool(1, kBlockSize, true);
  BlockTable table(pool);
  ASSERT_TRUE(table.Reserve(1));
  const std::uint32_t before = table.generation(0);
  table.Drop();
  ASSERT_TRUE(table.Reserve(1));
  EXPECT_NE(table.generation(0), before);
}

TEST(BlockTableTest, AnAdoptedBlockKeepsItsGeneration) {
  BlockPool pool(4, kBlockSize, true);
  BlockTable table = TableWith(pool, Range(0, 4));
  const std::uint32_t before = table.generation(0);
  table.Drop();
  BlockTable other(pool);
  ASSERT_EQ(other.AdoptPrefix(Range(0, 6)), 4);
  EXPECT_EQ(other.generation(0), before);
}

TEST(BlockTableTest, ReserveIsAllOrNothing) {
  BlockPool pool(2, kBlockSize, true);
  BlockTable table(pool);
  EXPECT_TRUE(table.Reserve(4));
  EXPECT_FALSE(table.Reserve(9));
  EXPECT_EQ(table.blocks().size(), 1u);
  EXPECT_EQ(pool.num_held(), 1);
}

TEST(BlockTableTest, CommitReturnsTheBlocksOfRejectedDrafts) {
  BlockPool pool(8, kBlockSize, true);
  BlockTable table = TableWith(pool, Range(0, 3));
  ASSERT_TRUE(table.Reserve(9));  // one token and a draft of 8
  EXPECT_EQ(pool.num_held(), 3);
  table.Commit(Range(3, 1));  // all of the draft rejected
  EXPECT_EQ(table.num_committed(), 4);
  EXPECT_EQ(pool.num_held(), 1);
  ASSERT_TRUE(table.Reserve(9));
  table.Commit(Range(4, 3));
  EXPECT_EQ(table.num_committed(), 7);
  EXPECT_EQ(table.blocks().size(), 2u);
  table.Commit({});
  EXPECT_EQ(table.blocks().size(), 2u);
  pool.CheckInvariants();
}

TEST(BlockTableTest, CommitBeyondTheReservationIsABug) {
  BlockPool pool(4, kBlockSize, true);
  BlockTable table(pool);
  EXPECT_THROW(table.Commit(Range(0, 1)), InternalError);
  ASSERT_TRUE(table.Reserve(2));
  EXPECT_THROW(table.Commit(Range(0, 5)), InternalError);
}

TEST(BlockTableTest, AnEqualPromptSharesItsFullBlocks) {
  BlockPool pool(8, kBlockSize, true);
  const BlockTable first = TableWith(pool, Range(0, 10));
  BlockTable second(pool);
  EXPECT_EQ(second.AdoptPrefix(Range(0, 10)), 8);
  EXPECT_EQ(second.num_committed(), 8);
  EXPECT_EQ(BlocksOf(second), (Blocks{first.blocks()[0], first.blocks()[1]}));
  EXPECT_EQ(pool.num_held(), 3);
  ASSERT_TRUE(second.Reserve(2));
  second.Commit(Range(8, 2));
  EXPECT_NE(second.blocks()[2], first.blocks()[2]);
  pool.CheckInvariants();
}

TEST(BlockTableTest, OnlyEqualSaltsShareBlocks) {
  BlockPool pool(16, kBlockSize, true);
  const auto adopted = [&pool](const std::string& salt, bool commit) {
    BlockTable table(pool);
    table.SetRoot(pool.RootOf(salt));
    const int num_adopted = table.AdoptPrefix(Range(0, 10));
    if (commit && table.Reserve(10 - num_adopted)) {
      table.Commit(Range(num_adopted, 10 - num_adopted));
    }
    return num_adopted;
  };
  EXPECT_EQ(adopted("", true), 0);
  EXPECT_EQ(adopted("a", true), 0);
  EXPECT_EQ(adopted("b", false), 0);
  EXPECT_EQ(adopted("", false), 8);
  EXPECT_EQ(adopted("a", false), 8);
  EXPECT_EQ(adopted("b", true), 0);
  EXPECT_EQ(adopted("b", false), 8);
  pool.CheckInvariants();
}

TEST(BlockTableTest, ADroppedTableKeepsItsSalt) {
  BlockPool pool(8, kBlockSize, true);
  const BlockTable unsalted = TableWith(pool, Range(0, 8));
  BlockTable table(pool);
  table.SetRoot(pool.RootOf("salt"));
  ASSERT_TRUE(table.Reserve(5));
  table.Commit(Range(0, 5));
  table.Drop();
  EXPECT_EQ(table.AdoptPrefix(Range(0, 9)), 4);  // its own block and not the other table's two
  EXPECT_THROW(table.SetRoot(kRootPrefix), InternalError);
}

TEST(BlockTableTest, SaltsOfNoBlockAreForgottenAndThoseOfBlocksAreNot) {
  BlockPool pool(2, kBlockSize, true);
  const PrefixId kept = pool.RootOf("kept");
  BlockTable table(pool);
  table.SetRoot(kept);
  ASSERT_TRUE(table.Reserve(4));
  table.Commit(Range(0, 4));
  const PrefixId lost = pool.RootOf("lost");
  EXPECT_EQ(pool.RootOf("lost"), lost);
  for (int i = 0; i < 100; ++i) pool.RootOf(std::to_string(i));
  EXPECT_EQ(pool.RootOf("kept"), kept);
  EXPECT_NE(pool.RootOf("lost"), lost);
}

TEST(BlockTableTest, AtLeastOneTokenIsLeftToCompute) {
  BlockPool pool(8, kBlockSize, true);
  const BlockTable first = TableWith(pool, Range(0, 8));
  const int adopted[] = {0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8};
  for (int length = 0; length <= 10; ++length) {
    BlockTable table(pool);
    EXPECT_EQ(table.AdoptPrefix(Range(0, length)), adopted[length]) << length;
  }
}

TEST(BlockTableTest, AdoptionEndsAtTheFirstDifference) {
  BlockPool pool(16, kBlockSize, true);
  const BlockTable first = TableWith(pool, Range(0, 12));
  Tokens tokens = Range(0, 20);
  tokens[6] = 99;  // the third block's tokens are equal, what comes before is not
  BlockTable second(pool);
  EXPECT_EQ(second.AdoptPrefix(tokens), 4);
}

TEST(BlockTableTest, AdoptionNeedsAnEmptyTable) {
  BlockPool pool(4, kBlockSize, true);
  BlockTable table = TableWith(pool, Range(0, 2));
  EXPECT_THROW(table.AdoptPrefix(Range(0, 9)), InternalError);
}

TEST(BlockTableTest, DroppedContentIsFoundAgainAndItsTailIsEvictedFirst) {
  BlockPool pool(4, kBlockSize, true);
  TableWith(pool, Range(0, 16)).Drop();
  EXPECT_EQ(pool.num_cached(), 4);
  BlockTable other(pool);
  ASSERT_TRUE(other.Reserve(5));  // evicts two
  other.Drop();
  BlockTable again(pool);
  EXPECT_EQ(again.AdoptPrefix(Range(0, 17)), 8);
  pool.CheckInvariants();
}

TEST(BlockTableTest, EqualBlocksComputedSideBySideAreStoredOnce) {
  BlockPool pool(8, kBlockSize, true);
  BlockTable first(pool), second(pool);
  ASSERT_TRUE(first.Reserve(6));
  ASSERT_TRUE(second.Reserve(6));
  EXPECT_EQ(pool.num_held(), 4);
  first.Commit(Range(0, 6));
  second.Commit(Range(0, 6));
  EXPECT_EQ(first.blocks()[0], second.blocks()[0]);
  EXPECT_NE(first.blocks()[1], second.blocks()[1]);
  EXPECT_EQ(pool.num_held(), 3);
  first.Drop();
  EXPECT_EQ(pool.num_held(), 2);
  second.Drop();
  EXPECT_EQ(pool.num_cached(), 1);
  pool.CheckInvariants();
}

TEST(BlockTableTest, AFullBlockIsFoundWhileItsWriterStillRuns) {
  BlockPool pool(8, kBlockSize, true);
  BlockTable writer = TableWith(pool, Range(0, 3));
  BlockTable before(pool);
  EXPECT_EQ(before.AdoptPrefix(Range(0, 9)), 0);
  ASSERT_TRUE(writer.Reserve(1));
  writer.Commit(Range(3, 1));
  BlockTable after(pool);
  EXPECT_EQ(after.AdoptPrefix(Range(0, 9)), 4);
}

TEST(BlockTableTest, WithoutPrefixCachingNothingIsShared) {
  BlockPool pool(8, kBlockSize, false);
  BlockTable first = TableWith(pool, Range(0, 8));
  BlockTable second(pool);
  EXPECT_EQ(second.AdoptPrefix(Range(0, 9)), 0);
  ASSERT_TRUE(second.Reserve(8));
  second.Commit(Range(0, 8));
  EXPECT_EQ(pool.num_held(), 4);
  first.Drop();
  second.Drop();
  EXPECT_EQ(pool.num_free(), 8);
}

TEST(BlockTableTest, MovingHandsTheBlocksOver) {
  BlockPool pool(8, kBlockSize, true);
  BlockTable first = TableWith(pool, Range(0, 6));
  const Blocks blocks = BlocksOf(first);
  BlockTable second(std::move(first));
  EXPECT_EQ(BlocksOf(second), blocks);
  EXPECT_EQ(second.num_committed(), 6);
  EXPECT_TRUE(first.blocks().empty());
  EXPECT_EQ(first.num_committed(), 0);
  BlockTable third = TableWith(pool, Range(100, 9));
  EXPECT_EQ(pool.num_held(), 5);
  third = std::move(second);
  EXPECT_EQ(pool.num_held(), 2);
  ASSERT_TRUE(third.Reserve(2));
  third.Commit(Range(6, 2));  // completes block 1: the partial tokens moved along
  BlockTable reader(pool);
  EXPECT_EQ(reader.AdoptPrefix(Range(0, 9)), 8);
}

TEST(BlockTableTest, TheDestructorGivesEverythingBack) {
  BlockPool pool(8, kBlockSize, true);
  {
    BlockTable table = TableWith(pool, Range(0, 6));
    ASSERT_TRUE(table.Reserve(9));
  }
  EXPECT_EQ(pool.num_held(), 0);
  EXPECT_EQ(pool.num_cached(), 1);
  pool.CheckInvariants();
}

}  // namespace
}  // namespace forerun
