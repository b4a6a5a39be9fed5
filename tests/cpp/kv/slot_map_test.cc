#include "cpp/kv/slot_map.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace forerun {
namespace {

TEST(SlotMapTest, ABlockIsNeededForEveryStartedBlockOfSlots) {
  EXPECT_EQ(NumBlocksFor(0, 4), 0);
  EXPECT_EQ(NumBlocksFor(1, 4), 1);
  EXPECT_EQ(NumBlocksFor(4, 4), 1);
  EXPECT_EQ(NumBlocksFor(5, 4), 2);
  EXPECT_EQ(NumBlocksFor(std::int64_t{1} << 40, 16), std::int64_t{1} << 36);
}

TEST(SlotMapTest, TheLargestNumberOfSlotsDoesNotOverflow) {
  const int most = std::numeric_limits<int>::max();
  EXPECT_EQ(NumBlocksFor(most, 16), most / 16 + 1);
  EXPECT_EQ(NumBlocksFor(most, 1), most);
}

TEST(SlotMapTest, ACacheSlotCountsTheSlotsOfAllBlocksBeforeIt) {
  const std::vector<BlockId> table = {7, 0, 3};
  EXPECT_EQ(CacheSlot(table, 0, 4), 28);
  EXPECT_EQ(CacheSlot(table, 3, 4), 31);
  EXPECT_EQ(CacheSlot(table, 4, 4), 0);
  EXPECT_EQ(CacheSlot(table, 11, 4), 15);
}

TEST(SlotMapTest, CacheSlotsAre64BitNumbers) {
  const std::vector<BlockId> table = {std::numeric_limits<BlockId>::max()};
  EXPECT_EQ(CacheSlot(table, 15, 16), (std::int64_t{1} << 35) - 1);
}

TEST(SlotMapTest, EachBlockVisitsEverySlotOnceInItsBlock) {
  for (int begin = 0; begin <= 9; ++begin) {
    for (int end = 0; end <= 12; ++end) {
      int next = begin, num_runs = 0;
      EachBlock(begin, end, 4, [&](int index, int block_begin, int slot_begin, int slot_end) {
        EXPECT_EQ(block_begin, 4 * index);
        EXPECT_EQ(slot_begin, next);
        EXPECT_LT(slot_begin, slot_end);
        EXPECT_EQ(slot_begin / 4, index);
        EXPECT_EQ((slot_end - 1) / 4, index);
        next = slot_end;
        ++num_runs;
      });
      EXPECT_EQ(next, std::max(begin, end));
      EXPECT_EQ(num_runs, begin < end ? (end - 1) / 4 - begin / 4 + 1 : 0);
    }
  }
}

}  // namespace
}  // namespace forerun
