// The pool alone: accounts, eviction order, and what counts as equal content.
#include "cpp/kv/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "forerun/error.h"

namespace forerun {
namespace {

using Tokens = std::vector<TokenId>;

constexpr int kBlockSize = 2;

std::vector<BlockId> Allocate(BlockPool& pool, int n) {
  std::vector<BlockId> blocks;
  EXPECT_TRUE(pool.TryAllocate(n, blocks));
  return blocks;
}

// Registers `n` unrelated blocks and releases them in order; the first is the least recently used.
std::vector<BlockId> FillCache(BlockPool& pool, int n) {
  std::vector<BlockId> blocks = Allocate(pool, n);
  for (int i = 0; i < n; ++i) pool.Register(blocks[i], kRootPrefix, Tokens{i, i});
  for (BlockId block : blocks) pool.Release(block);
  return blocks;
}

TEST(BlockPoolTest, StartsWithEveryBlockFree) {
  BlockPool pool(5, kBlockSize, true);
  EXPECT_EQ(pool.num_total(), 5);
  EXPECT_EQ(pool.num_free(), 5);
  EXPECT_EQ(pool.num_cached(), 0);
  EXPECT_EQ(pool.num_held(), 0);
  EXPECT_EQ(pool.num_available(), 5);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, RefusesSizesBelowOne) {
  EXPECT_THROW(BlockPool(0, kBlockSize, true), InvalidArgument);
  EXPECT_THROW(BlockPool(4, 0, true), InvalidArgument);
}

TEST(BlockPoolTest, AllocateIsAllOrNothing) {
  BlockPool pool(4, kBlockSize, true);
  std::vector<BlockId> blocks = Allocate(pool, 3);
  EXPECT_FALSE(pool.TryAllocate(2, blocks));
  EXPECT_EQ(blocks.size(), 3u);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_TRUE(pool.TryAllocate(1, blocks));
  std::ranges::sort(blocks);
  EXPECT_EQ(blocks, (std::vector<BlockId>{0, 1, 2, 3}));
  EXPECT_TRUE(pool.TryAllocate(0, blocks));
  pool.CheckInvariants();
}

TEST(BlockPoolTest, UnregisteredBlocksBecomeFree) {
  BlockPool pool(4, kBlockSize, true);
  for (BlockId block : Allocate(pool, 4)) pool.Release(block);
  EXPECT_EQ(pool.num_free(), 4);
  EXPECT_EQ(pool.num_cached(), 0);
}

TEST(BlockPoolTest, RegisteredBlocksStayCachedUntilTheirMemoryIsNeeded) {
  BlockPool pool(4, kBlockSize, true);
  FillCache(pool, 3);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.num_cached(), 3);
  Allocate(pool, 2);  // the free one and the oldest cached one
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.num_cached(), 2);
  EXPECT_EQ(pool.num_held(), 2);
  EXPECT_FALSE(pool.Lookup(kRootPrefix, Tokens{0, 0}).has_value());
  EXPECT_TRUE(pool.Lookup(kRootPrefix, Tokens{1, 1}).has_value());
  pool.CheckInvariants();
}

TEST(BlockPoolTest, EvictsTheLeastRecentlyReleased) {
  BlockPool pool(4, kBlockSize, true);
  const std::vector<BlockId> blocks = FillCache(pool, 4);
  pool.Release(pool.Lookup(kRootPrefix, Tokens{0, 0})->block);
  pool.Release(pool.Lookup(kRootPrefix, Tokens{2, 2})->block);
  EXPECT_EQ(Allocate(pool, 4), (std::vector<BlockId>{blocks[1], blocks[3], blocks[0], blocks[2]}));
}

TEST(BlockPoolTest, LookupTakesAReference) {
  BlockPool pool(2, kBlockSize, true);
  const BlockId block = FillCache(pool, 1)[0];
  EXPECT_EQ(pool.Lookup(kRootPrefix, Tokens{0, 0})->block, block);
  EXPECT_EQ(pool.Lookup(kRootPrefix, Tokens{0, 0})->block, block);
  EXPECT_EQ(pool.num_held(), 1);
  pool.Release(block);
  EXPECT_EQ(pool.num_held(), 1);
  pool.Release(block);
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_THROW(pool.Release(block), InternalError);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, EqualTokensAfterDifferentPrefixesAreDifferentBlocks) {
  BlockPool pool(4, kBlockSize, true);
  const std::vector<BlockId> blocks = Allocate(pool, 4);
  const PrefixId first = pool.Register(blocks[0], kRootPrefix, Tokens{1, 2});
  const PrefixId second = pool.Register(blocks[1], kRootPrefix, Tokens{1, 3});
  EXPECT_NE(first, second);
  pool.Register(blocks[2], first, Tokens{7, 7});
  EXPECT_FALSE(pool.Lookup(second, Tokens{7, 7}).has_value());
  EXPECT_FALSE(pool.Lookup(kRootPrefix, Tokens{7, 7}).has_value());
  pool.Register(blocks[3], second, Tokens{7, 7});
  EXPECT_EQ(pool.Lookup(first, Tokens{7, 7})->block, blocks[2]);
  EXPECT_EQ(pool.Lookup(second, Tokens{7, 7})->block, blocks[3]);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, ASecondEqualBlockStaysPrivate) {
  BlockPool pool(3, kBlockSize, true);
  const std::vector<BlockId> blocks = Allocate(pool, 2);
  const PrefixId prefix = pool.Register(blocks[0], kRootPrefix, Tokens{1, 2});
  EXPECT_EQ(pool.Register(blocks[1], kRootPrefix, Tokens{1, 2}), prefix);
  EXPECT_EQ(pool.Lookup(kRootPrefix, Tokens{1, 2})->block, blocks[0]);
  pool.Release(blocks[1]);
  EXPECT_EQ(pool.num_free(), 2);
  pool.CheckInvariants();
}

// An evicted prefix that is computed again is a new prefix: nothing that was registered after the
// old one can be found through the new one, so stale content never comes back.
TEST(BlockPoolTest, PrefixIdsAreNeverUsedTwice) {
  BlockPool pool(1, kBlockSize, true);
  const BlockId block = Allocate(pool, 1)[0];
  const PrefixId before = pool.Register(block, kRootPrefix, Tokens{1, 2});
  pool.Release(block);
  Allocate(pool, 1);
  EXPECT_NE(pool.Register(block, kRootPrefix, Tokens{1, 2}), before);
}

// Two blocks and four buckets: nearly every pair of contents collides somewhere, erased and
// inserted over and over.
TEST(BlockPoolTest, CrowdedRegistryFindsExactlyWhatIsRegistered) {
  for (int num_blocks = 1; num_blocks <= 9; ++num_blocks) {
    BlockPool pool(num_blocks, kBlockSize, true);
    for (int i = 0; i < 500; ++i) {
      const BlockId block = Allocate(pool, 1)[0];
      pool.Register(block, kRootPrefix, Tokens{i, -i});
      pool.Release(block);
      pool.CheckInvariants();
      const int oldest = std::max(0, i - num_blocks + 1);
      for (int j = std::max(0, oldest - 3); j <= i; ++j) {
        const auto hit = pool.Lookup(kRootPrefix, Tokens{j, -j});
        ASSERT_EQ(hit.has_value(), j >= oldest) << i << " " << j;
        if (hit) pool.Release(hit->block);  // in order of age, which therefore stays
      }
    }
  }
}

TEST(BlockPoolTest, DropCachedFreesBlocksThatAreNotHeld) {
  BlockPool pool(4, kBlockSize, true);
  FillCache(pool, 3);
  pool.Lookup(kRootPrefix, Tokens{1, 1});
  pool.DropCached();
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_EQ(pool.num_cached(), 0);
  EXPECT_FALSE(pool.Lookup(kRootPrefix, Tokens{0, 0}).has_value());
  EXPECT_TRUE(pool.Lookup(kRootPrefix, Tokens{1, 1}).has_value());
  pool.CheckInvariants();
}

TEST(BlockPoolTest, WithoutPrefixCachingNothingIsKept) {
  BlockPool pool(2, kBlockSize, false);
  const BlockId block = Allocate(pool, 1)[0];
  EXPECT_EQ(pool.Register(block, kRootPrefix, Tokens{1, 2}), kRootPrefix);
  EXPECT_FALSE(pool.Lookup(kRootPrefix, Tokens{1, 2}).has_value());
  pool.Release(block);
  EXPECT_EQ(pool.num_free(), 2);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, MisuseIsAnInternalError) {
  BlockPool pool(2, kBlockSize, true);
  EXPECT_THROW(pool.Release(0), InternalError);
  EXPECT_THROW(pool.Release(-1), InternalError);
  EXPECT_THROW(pool.Release(2), InternalError);
  EXPECT_THROW(pool.Register(0, kRootPrefix, Tokens{1, 2}), InternalError);
  const BlockId block = Allocate(pool, 1)[0];
  EXPECT_THROW(pool.Register(block, kRootPrefix, Tokens{1}), InternalError);
  pool.Register(block, kRootPrefix, Tokens{1, 2});
  EXPECT_THROW(pool.Register(block, kRootPrefix, Tokens{1, 2}), InternalError);
  pool.CheckInvariants();
}

}  // namespace
}  // namespace forerun
