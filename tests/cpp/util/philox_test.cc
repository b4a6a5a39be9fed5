#include "cpp/util/philox.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>

namespace forerun {
namespace {

void ExpectWords(const PhiloxBlock& block, std::uint32_t w0, std::uint32_t w1, std::uint32_t w2,
                 std::uint32_t w3) {
  EXPECT_EQ(block.word[0], w0);
  EXPECT_EQ(block.word[1], w1);
  EXPECT_EQ(block.word[2], w2);
  EXPECT_EQ(block.word[3], w3);
}

// The known answers that Random123 publishes for philox4x32-10.
TEST(PhiloxTest, ReproducesThePublishedVectors) {
  constexpr std::uint64_t kOnes = ~std::uint64_t{0};
  ExpectWords(Philox(0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
  ExpectWords(Philox(kOnes, kOnes, kOnes), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);
  // The digits of pi: words in order, the low one first.
  ExpectWords(Philox(0x299f31d0'a4093822, 0x85a308d3'243f6a88, 0x03707344'13198a2e), 0xd16cfe09,
              0x94fdcceb, 0x5001e420, 0x24126ea1);
}

TEST(PhiloxTest, EveryArgumentChangesTheBlock) {
  std::set<std::uint32_t> first_words;
  int num_blocks = 0;
  for (std::uint64_t key : {1, 2, 3}) {
    for (std::uint64_t low : {1, 2, 3}) {
      for (std::uint64_t high : {1, 2, 3}) {
        first_words.insert(Philox(key, low, high).word[0]);
        ++num_blocks;
      }
    }
  }
  EXPECT_EQ(static_cast<int>(first_words.size()), num_blocks);
}

}  // namespace
}  // namespace forerun
