#include "cpp/index/history.h"

#include <gtest/gtest.h>

#include <deque>
#include <limits>
#include <random>
#include <vector>

#include "forerun/error.h"
#include "tests/cpp/testing/naive_suffix_index.h"
#include "tests/cpp/testing/num_examples.h"

namespace forerun {
namespace {

using testing::NaiveSuffixIndex;
using testing::NumExamples;
using testing::Tokens;

constexpr std::int64_t kNoLimit = std::int64_t{1} << 40;

int Draw(std::mt19937& random, int below) { return static_cast<int>(random() % below); }

Tokens RandomTokens(std::mt19937& random, int size, int alphabet) {
  Tokens tokens(size);
  for (TokenId& token : tokens) token = Draw(random, alphabet);
  return tokens;
}

// What every segment holds, as plain lists of outputs, oldest first.
Tokens SegmentText(const std::vector<Tokens>& outputs) {
  NaiveSuffixIndex naive;
  for (const Tokens& output : outputs) {
    naive.StartSequence();
    for (const TokenId token : output) naive.Append(token);
  }
  return naive.text();
}

TEST(HistoryTest, TheLargestBoundIsNoBound) {
  History history(std::numeric_limits<int>::max(), kNoLimit, 4);
  for (int i = 0; i < 20; ++i) history.Add(Tokens{i, i + 1});
  EXPECT_EQ(history.num_requests(), 20);
  EXPECT_EQ(history.num_segments(), 1);
  history.CheckIntegrity();
}

TEST(HistoryTest, RemembersTheNewestOutputsUpToTheBound) {
  for (const int bound : {1, 2, 7, 8, 9, 16, 20, 100}) {
    SCOPED_TRACE(bound);
    History history(bound, kNoLimit, 4);
    for (TokenId i = 0; i < 3 * bound + 5; ++i) {
      history.Add(Tokens{i, i + 1});
      history.CheckIntegrity();
      ASSERT_LE(history.num_requests(), bound);
      ASSERT_GE(history.num_requests(), std::min(i + 1, bound - (bound + 7) / 8 + 1));
      TokenId expected = i - history.num_requests() + 1;
      for (int s = 0; s < history.num_segments(); ++s) {
        std::vector<Tokens> outputs;
        for (int j = 0; j < (bound + 7) / 8 && expected <= i; ++j, ++expected) {
          outputs.push_back({expected, expected + 1});
        }
        const auto text = history.segment(s).text();
        ASSERT_EQ(Tokens(text.begin(), text.end()), SegmentText(outputs));
      }
      ASSERT_EQ(expected, i + 1);
    }
  }
}

TEST(HistoryTest, ABoundOfZeroRemembersNothing) {
  History history(0, kNoLimit, 4);
  history.Add(Tokens{1, 2, 3});
  EXPECT_EQ(history.num_requests(), 0);
  EXPECT_EQ(history.num_segments(), 0);
  History without_memory(10, 0, 4);
  without_memory.Add(Tokens{1, 2, 3});
  EXPECT_EQ(without_memory.num_requests(), 0);
}

TEST(HistoryTest, EmptyOutputsAreNotRemembered) {
  History history(3, kNoLimit, 4);
  history.Add(Tokens{});
  EXPECT_EQ(history.num_requests(), 0);
}

TEST(HistoryTest, StaysUnderItsBoundInBytes) {
  std::mt19937 random(1);
  constexpr std::int64_t kMaxBytes = 100000;
  History history(1000000, kMaxBytes, 6);
  int most = 0;
  for (int i = 0; i < 400; ++i) {
    history.Add(RandomTokens(random, 1 + Draw(random, 60), 4));
    ASSERT_LE(history.num_bytes(), kMaxBytes);
    ASSERT_LE(history.num_segments(), History::kMaxSegments);
    most = std::max(most, history.num_requests());
  }
  history.CheckIntegrity();
  EXPECT_GT(history.num_bytes(), kMaxBytes / 2);
  EXPECT_LT(most, 100);
}

TEST(HistoryTest, SegmentsSealedByBytesAndByRequestsAreNeverTooMany) {
  std::mt19937 random(2);
  constexpr std::int64_t kMaxBytes = 400000;
  History history(32, kMaxBytes, 6);
  int most = 0;
  for (int i = 0; i < 120; ++i) {
    // A long output fills a segment in bytes, four short ones fill one in requests.
    const bool is_long = i % 5 == 0;
    history.Add(RandomTokens(random, is_long ? 500 : 2, is_long ? 1000 : 2));
    ASSERT_NO_THROW(history.CheckIntegrity());
    most = std::max(most, history.num_segments());
  }
  EXPECT_EQ(most, History::kMaxSegments);
}

TEST(HistoryTest, FollowersAreAtTheLongestMatchWhateverCameAndWent) {
  for (int seed = 0; seed < NumExamples(150, 2000); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int depth = 1 + Draw(random, 6);
    const int alphabet = 1 + Draw(random, 3);
    History history(1 + Draw(random, 20), kNoLimit, depth);
    std::vector<Tokens> texts(3);
    std::vector<History::Follower> followers(3);
    for (int op = 0; op < 60; ++op) {
      if (Draw(random, 3) == 0) history.Add(RandomTokens(random, Draw(random, 8), alphabet));
      if (Draw(random, 40) == 0) history.Clear();
      const int i = Draw(random, 3);
      for (const TokenId token : RandomTokens(random, Draw(random, 10), alphabet)) {
        texts[i].push_back(token);
      }
      history.Follow(texts[i], followers[i]);
      for (int s = 0; s < history.num_segments(); ++s) {
        NaiveSuffixIndex naive;
        for (const TokenId token : history.segment(s).text()) naive.Append(token);
        const SuffixIndex::Cursor match = history.match(s, followers[i]);
        const std::span<const TokenId> text = texts[i];
        ASSERT_EQ(match.length, naive.LongestMatch(text, depth - 1));
        SuffixIndex::StateId state = SuffixIndex::kRoot;
        for (const TokenId token : text.last(match.length)) {
          state = history.segment(s).Next(state, token);
        }
        ASSERT_EQ(match.state, state);
      }
    }
    history.CheckIntegrity();
  }
}

TEST(HistoryTest, AFollowerThatIsNotUpToDateIsNotUsed) {
  History history(8, kNoLimit, 4);
  history.Add(Tokens{1, 2, 3});
  History::Follower follower;
  EXPECT_THROW(history.match(0, follower), InternalError);
  history.Follow(Tokens{1, 2}, follower);
  EXPECT_EQ(history.match(0, follower).length, 2);
  for (int i = 0; i < 8; ++i) history.Add(Tokens{7, 8});
  EXPECT_THROW(history.match(7, follower), InternalError);
  history.Clear();
  history.Add(Tokens{2, 3});
  EXPECT_THROW(history.match(0, follower), InternalError);
  history.Follow(Tokens{1, 2}, follower);
  EXPECT_EQ(history.match(0, follower).length, 1);
}

}  // namespace
}  // namespace forerun
