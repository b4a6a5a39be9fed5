#include "cpp/model/padded_batch.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

#include "forerun/error.h"

namespace forerun {
namespace {

constexpr int kBlockSize = 8;

TEST(PaddedBatchTest, KeepsTheRowsAndAddsSomeThatShareNoSlot) {
  PaddedBatch padded(/*max_rows=*/64, /*max_padding=*/31, {kBlockSize, /*max_model_len=*/512});
  EXPECT_EQ(padded.num_blocks(), 4);
  padded.SetBlocks(100);
  const std::vector<TokenId> tokens = {7, 8, 9};
  const std::vector<BlockId> table = {3};
  const std::array<SequenceRows, 2> sequences = {SequenceRows{0, 2, 5, table},
                                                 SequenceRows{2, 1, 0, table}};
  const std::vector<std::int32_t> wanted = {0, 1, 2}, sources = {4, 4, 6};
  const ForwardBatch batch = {tokens, sequences, wanted, sources};
  for (const int num_rows : {3, 4, 34}) {
    const ForwardBatch found = padded.Pad(batch, num_rows);
    ASSERT_EQ(std::ssize(found.tokens), num_rows);
    ASSERT_EQ(std::ssize(found.sequences), 2 + num_rows - 3);
    EXPECT_EQ(std::ssize(found.logits_rows), num_rows);
    EXPECT_EQ(found.logits_rows.back(), num_rows - 1);
    EXPECT_EQ(std::ssize(found.sources), num_rows);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(found.tokens[i], tokens[i]);
      EXPECT_EQ(found.sources[i], sources[i]);
    }
    std::set<int> slots;
    for (int i = 2; i < std::ssize(found.sequences); ++i) {
      const SequenceRows& sequence = found.sequences[i];
      EXPECT_EQ(sequence.row_begin, i + 1);
      EXPECT_EQ(sequence.num_rows, 1);
      ASSERT_LT(sequence.num_context, kBlockSize);
      ASSERT_EQ(std::ssize(sequence.block_table), 1);
      EXPECT_GE(sequence.block_table[0], 100);
      EXPECT_LT(sequence.block_table[0], 104);
      slots.insert(sequence.block_table[0] * kBlockSize + sequence.num_context);
    }
    EXPECT_EQ(std::ssize(slots), num_rows - 3);
  }
  EXPECT_THROW(padded.Pad(batch, 36), InternalError);
}

TEST(PaddedBatchTest, PositionsStayWithinTheLongestRequest) {
  PaddedBatch padded(/*max_rows=*/8, /*max_padding=*/31,
                     {kBlockSize, /*max_model_len=*/4, /*first=*/1});
  EXPECT_EQ(padded.num_blocks(), 11);
  padded.SetBlocks(0);
  const ForwardBatch found = padded.Pad({}, 31);
  for (const SequenceRows& sequence : found.sequences) {
    EXPECT_GE(sequence.num_context, 1);
    EXPECT_LT(sequence.num_context, 4);
  }
  EXPECT_TRUE(found.sources.empty());
}

}  // namespace
}  // namespace forerun
