#include "cpp/index/tenant_histories.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpp/index/segment_restorer.h"
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

// The texts of a history's segments, the oldest first.
std::vector<Tokens> Texts(const History& history) {
  std::vector<Tokens> texts;
  for (int i = 0; i < history.num_segments(); ++i) {
    const auto text = history.segment(i).text();
    texts.emplace_back(text.begin(), text.end());
  }
  return texts;
}

SuffixIndex IndexOf(const Tokens& output, int max_depth) {
  SuffixIndex index(max_depth);
  for (const TokenId token : output) index.Append(token);
  return index;
}

TEST(TenantHistoriesTest, ASingleTenantHasWhatAHistoryOfItsOwnWouldHave) {
  for (int seed = 0; seed < NumExamples(60, 1000); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int max_requests = Draw(random, 20);
    const std::int64_t max_bytes = Draw(random, 2) == 0 ? kNoLimit : 20000;
    History alone(max_requests, max_bytes, 4);
    TenantHistories histories(max_requests, max_bytes, 4);
    const auto member = histories.Join("a");
    for (int op = 0; op < 60; ++op) {
      const Tokens output = RandomTokens(random, Draw(random, 30), 3);
      alone.Add(output);
      histories.Add(*member, output);
      if (Draw(random, 40) == 0) {
        alone.Clear();
        histories.Clear();
      }
      ASSERT_EQ(Texts(member->history), Texts(alone));
      histories.CheckIntegrity();
    }
  }
}

TEST(TenantHistoriesTest, AllTenantsTogetherStayUnderTheBound) {
  for (int seed = 0; seed < NumExamples(60, 1000); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const bool by_bytes = Draw(random, 2) == 0;
    TenantHistories histories(by_bytes ? 1000 : 1 + Draw(random, 20), by_bytes ? 30000 : kNoLimit,
                              4);
    std::vector<TenantHistories::Member> members;
    for (int op = 0; op < 80; ++op) {
      const std::string name(1, static_cast<char>('a' + Draw(random, 5)));
      if (Draw(random, 2) == 0) members.push_back(histories.Join(name));
      if (members.empty()) continue;
      const std::size_t i = Draw(random, static_cast<int>(members.size()));
      if (Draw(random, 3) == 0) {
        members.erase(members.begin() + static_cast<std::ptrdiff_t>(i));
      } else if (Draw(random, 8) == 0) {
        histories.AddOlder(name, IndexOf(RandomTokens(random, 5, 3), 4), 1);
      } else {
        histories.Add(*members[i], RandomTokens(random, Draw(random, 30), 3));
      }
      histories.CheckIntegrity();
    }
  }
}

TEST(TenantHistoriesTest, ATenantWithoutOutputsAndMembersIsForgotten) {
  TenantHistories histories(10, kNoLimit, 4);
  auto silent = histories.Join("silent");
  auto speaker = histories.Join("speaker");
  histories.Add(*speaker, Tokens{1, 2});
  silent.reset();
  speaker.reset();
  EXPECT_EQ(histories.num_tenants(), 1);
  EXPECT_EQ(histories.Join("speaker")->history.num_requests(), 1);
  histories.Clear();
  EXPECT_EQ(histories.num_tenants(), 0);
  EXPECT_EQ(histories.num_bytes(), 0);
}

TEST(TenantHistoriesTest, TheSegmentThatGrewLongestAgoGoesFirst) {
  TenantHistories histories(8, kNoLimit, 4);  // segments of one output
  const auto first = histories.Join("first");
  const auto second = histories.Join("second");
  histories.Add(*first, Tokens{1, 1});
  histories.Add(*second, Tokens{2, 1});
  for (TokenId i = 0; i < 6; ++i) histories.Add(*first, Tokens{1, 2 + i});
  histories.Add(*first, Tokens{1, 8});  // the ninth: {1, 1} goes
  EXPECT_EQ(Texts(first->history).front(), (Tokens{1, 2}));
  EXPECT_EQ(second->history.num_requests(), 1);
  histories.Add(*first, Tokens{1, 9});  // {2, 1} goes
  EXPECT_EQ(second->history.num_requests(), 0);
  EXPECT_EQ(Texts(first->history).front(), (Tokens{1, 2}));
}

TEST(TenantHistoriesTest, FollowersStayAtTheLongestMatchWhenOlderSegmentsCome) {
  for (int seed = 0; seed < NumExamples(100, 2000); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int depth = 2 + Draw(random, 4);
    TenantHistories histories(8 + Draw(random, 20), kNoLimit, depth);
    const auto member = histories.Join("");
    Tokens text;
    History::Follower follower;
    for (int op = 0; op < 40; ++op) {
      const Tokens output = RandomTokens(random, 1 + Draw(random, 8), 2);
      switch (Draw(random, 4)) {
        case 0:
          histories.Add(*member, output);
          break;
        case 1:
          histories.AddOlder("", IndexOf(output, depth), 1);
          break;
        default:
          text.insert(text.end(), output.begin(), output.end());
      }
      if (Draw(random, 60) == 0) histories.Clear();
      const History& history = member->history;
      history.Follow(text, follower);
      for (int i = 0; i < history.num_segments(); ++i) {
        NaiveSuffixIndex naive;
        for (const TokenId token : history.segment(i).text()) naive.Append(token);
        ASSERT_EQ(history.match(i, follower).length, naive.LongestMatch(text, depth - 1));
      }
    }
  }
}

TEST(TenantHistoriesTest, OlderOutputsAreRefusedOnceAnyWereForgotten) {
  TenantHistories histories(16, kNoLimit, 4);
  const auto member = histories.Join("a");
  histories.Add(*member, Tokens{1, 2});
  EXPECT_TRUE(histories.AddOlder("a", IndexOf({3, 4}, 4), 1));
  EXPECT_TRUE(histories.AddOlder("b", IndexOf({5, 6}, 4), 1));
  histories.Clear();
  EXPECT_FALSE(histories.AddOlder("a", IndexOf({3, 4}, 4), 1));
  EXPECT_FALSE(histories.AddOlder("b", IndexOf({5, 6}, 4), 1));
  EXPECT_EQ(histories.num_requests(), 0);
}

TEST(SegmentRestorerTest, TheNewestOutputsOfEveryTenantComeBackUpToTheBound) {
  for (const int num_outputs : {0, 1, 5, 16, 40}) {
    SCOPED_TRACE(num_outputs);
    TenantHistories histories(16, kNoLimit, 4);
    SegmentRestorer restorer(16, kNoLimit, 4);
    int num_restored = 0;
    for (TokenId i = 0; i < num_outputs; ++i) {
      const Tokens output = {i, i + 1};
      num_restored += restorer.Add({output, i % 2 == 0 ? "even" : "odd"});
    }
    restorer.Finish();
    restorer.TakeInto(histories);
    histories.CheckIntegrity();
    EXPECT_EQ(num_restored, std::min(num_outputs, 16));
    EXPECT_EQ(histories.num_requests(), num_restored);
    const auto even = histories.Join("even");
    const auto odd = histories.Join("odd");
    EXPECT_EQ(even->history.num_requests(), (num_restored + 1) / 2);
    std::vector<TokenId> begins;
    for (const Tokens& text : Texts(odd->history)) begins.push_back(text.front());
    EXPECT_TRUE(std::is_sorted(begins.rbegin(), begins.rend())) << "the oldest first";
  }
}

TEST(SegmentRestorerTest, StaysUnderTheBoundInBytes) {
  std::mt19937 random(1);
  constexpr std::int64_t kMaxBytes = 400000;
  TenantHistories histories(1000000, kMaxBytes, 6);
  SegmentRestorer restorer(1000000, kMaxBytes, 6);
  int num_restored = 0;
  while (restorer.Add({RandomTokens(random, 50, 4)})) ++num_restored;
  restorer.Finish();
  restorer.TakeInto(histories);
  histories.CheckIntegrity();
  EXPECT_GT(histories.num_bytes(), kMaxBytes / 2);
  EXPECT_GT(num_restored, 10);
}

TEST(SegmentRestorerTest, IndexesInOneThreadWhileAnotherTakesAndAdds) {
  TenantHistories histories(800, kNoLimit, 6);
  SegmentRestorer restorer(400, kNoLimit, 6);
  const auto member = histories.Join("a");
  std::thread restoring([&] {
    std::mt19937 random(1);
    for (int i = 0; i < 400; ++i) restorer.Add({RandomTokens(random, 40, 4), "a"});
    restorer.Finish();
  });
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    restorer.TakeInto(histories);
    histories.Add(*member, RandomTokens(random, 20, 4));
  }
  restoring.join();
  restorer.TakeInto(histories);
  histories.CheckIntegrity();
  EXPECT_GT(histories.num_requests(), 300);
}

}  // namespace
}  // namespace forerun
