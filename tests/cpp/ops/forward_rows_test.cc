// What Begin makes of a forward pass's sequences and row indices.
#include "cpp/ops/forward_rows.h"

#include <gtest/gtest.h>

#include <vector>

#include "forerun/error.h"
#include "tests/cpp/testing/naive_ops.h"

namespace forerun {
namespace {

using Ints = std::vector<std::int32_t>;

Ints Listed(std::span<const std::int32_t> values) { return {values.begin(), values.end()}; }

class ForwardRowsTest : public ::testing::Test {
 protected:
  NaiveKvCache cache_{{1, 1, 2, 16, 4}, 8};
  const std::vector<BlockId> blocks_ = {5, 1}, others_ = {3};
  const std::vector<std::int32_t> parents_ = {-1, 0, -1, 2};
  ForwardRows rows_;
};

TEST_F(ForwardRowsTest, RowsHaveTheSlotsAndPositionsOfTheirSequences) {
  const std::vector<TokenId> tokens(8);
  // The second sequence: two known tokens, and a tree of two paths of two nodes.
  const SequenceRows sequences[] = {{0, 2, 15, blocks_}, {2, 6, 3, others_, {5, parents_}}};
  rows_.Set({.tokens = tokens, .cache = &cache_, .sequences = sequences});
  EXPECT_EQ(rows_.num_rows(), 8);
  EXPECT_EQ(Listed(rows_.positions()), (Ints{15, 16, 3, 4, 5, 6, 5, 6}));
  EXPECT_EQ(Listed(rows_.indices(RowIndices::kSlots)), (Ints{95, 16, 51, 52, 53, 54, 55, 56}));
}

TEST_F(ForwardRowsTest, WantedRowsKeepTheirContext) {
  const std::vector<TokenId> tokens(8);
  const SequenceRows sequences[] = {{0, 2, 15, blocks_}, {2, 6, 3, others_, {5, parents_}}};
  const Ints wanted = {1, 3, 4, 7}, sources = {9, 8, 7, 6, 5, 4, 3, 2};
  rows_.Set({tokens, &cache_, sequences, wanted, sources});
  EXPECT_EQ(Listed(rows_.indices(RowIndices::kWanted)), wanted);
  EXPECT_EQ(Listed(rows_.indices(RowIndices::kSources)), sources);
  EXPECT_EQ(rows_.sequences(RowSet::kAll).size(), 2u);
  const auto selected = rows_.sequences(RowSet::kWanted);
  ASSERT_EQ(selected.size(), 3u);
  const int expected[3][3] = {{0, 1, 16}, {1, 2, 4}, {3, 1, 8}};  // row_begin, rows, context
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(selected[i].row_begin, expected[i][0]);
    EXPECT_EQ(selected[i].num_rows, expected[i][1]);
    EXPECT_EQ(selected[i].num_context, expected[i][2]);
  }
  EXPECT_EQ(selected[0].block_table.data(), blocks_.data());
  EXPECT_EQ(selected[2].tree.parents.data(), parents_.data());
}

TEST_F(ForwardRowsTest, APassWithoutKeysAndValuesHasNoSequences) {
  const std::vector<TokenId> tokens(3);
  rows_.Set({.tokens = tokens, .sources = parents_});
  EXPECT_EQ(rows_.cache(), nullptr);
  EXPECT_TRUE(rows_.positions().empty());
  EXPECT_TRUE(rows_.sequences(RowSet::kWanted).empty());
}

TEST_F(ForwardRowsTest, RowsThatContradictEachOtherAreBugs) {
  const std::vector<TokenId> tokens(4);
  const auto set = [&](std::vector<SequenceRows> sequences, const Ints& wanted = {}) {
    rows_.Set({tokens, &cache_, sequences, wanted});
  };
  EXPECT_NO_THROW(set({{0, 3, 0, blocks_}, {3, 1, 0, others_}}, {0, 3}));
  EXPECT_THROW(set({{0, 3, 0, blocks_}}), InternalError);
  EXPECT_THROW(set({{1, 3, 0, blocks_}, {0, 1, 0, others_}}), InternalError);
  EXPECT_THROW(set({{0, 3, 0, blocks_}, {2, 1, 0, others_}}), InternalError);
  EXPECT_THROW(set({{0, 4, 0, blocks_}, {4, 1, 0, others_}}), InternalError);
  EXPECT_THROW(set({{0, 4, 30, blocks_}}), InternalError);
  EXPECT_THROW(set({{0, 4, 0, blocks_}}, {1, 1}), InternalError);
  EXPECT_THROW(set({{0, 4, 0, blocks_}}, {-1}), InternalError);
  EXPECT_THROW(set({{0, 4, 0, blocks_}}, {4}), InternalError);
}

}  // namespace
}  // namespace forerun
