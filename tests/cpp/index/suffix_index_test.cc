#include "cpp/index/suffix_index.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

#include "forerun/error.h"
#include "tests/cpp/testing/naive_suffix_index.h"
#include "tests/cpp/testing/num_examples.h"

namespace forerun {

// Reaches into an index to break it.
struct SuffixIndexTestPeer {
  static auto& State(SuffixIndex& index, int state) { return index.states_[state]; }
  static auto& Edges(SuffixIndex& index) { return index.edges_; }
  static auto& Buckets(SuffixIndex& index) { return index.buckets_; }
  static auto& Tail(SuffixIndex& index) { return index.tail_; }
};

namespace {

using testing::NaiveSuffixIndex;
using testing::NumExamples;
using testing::Tokens;
using Cursor = SuffixIndex::Cursor;

constexpr int kNoLimit = 1 << 30;

int Draw(std::mt19937& random, int below) { return static_cast<int>(random() % below); }

void AppendAll(SuffixIndex& index, std::span<const TokenId> tokens) {
  for (const TokenId token : tokens) index.Append(token);
}

SuffixIndex::StateId Find(const SuffixIndex& index, std::span<const TokenId> string) {
  SuffixIndex::StateId state = SuffixIndex::kRoot;
  for (const TokenId token : string) {
    state = index.Next(state, token);
    if (state == SuffixIndex::kNone) return state;
  }
  return state;
}

std::map<TokenId, int> Continuations(const SuffixIndex& index, SuffixIndex::StateId state) {
  std::map<TokenId, int> continuations;
  index.ForEachNext(state, [&](TokenId token, SuffixIndex::StateId target) {
    EXPECT_TRUE(continuations.emplace(token, index.count(target)).second);
  });
  return continuations;
}

void ExpectAnswersOf(const NaiveSuffixIndex& naive, const SuffixIndex& index,
                     const Tokens& string) {
  const SuffixIndex::StateId state = Find(index, string);
  ASSERT_NE(state, SuffixIndex::kNone);
  const int size = static_cast<int>(string.size());
  ASSERT_LE(size, index.length(state));
  ASSERT_GT(size, index.length(index.link(state)));
  const std::vector<int> ends = naive.Ends(string);
  ASSERT_EQ(index.first_end(state), ends.front());
  ASSERT_EQ(index.last_token(state), string.back());
  if (size <= index.max_depth()) {
    ASSERT_EQ(index.count(state), static_cast<int>(ends.size()));
  }
  if (size >= index.max_depth()) return;
  const std::map<TokenId, int> expected = naive.Continuations(string);
  ASSERT_EQ(Continuations(index, state), expected);
  int num_followed = 0, best_count = 0;
  TokenId best = SuffixIndex::kNone;
  for (const auto& [token, count] : expected) {
    num_followed += count;
    if (count > best_count) {
      best = token;
      best_count = count;
    }
  }
  ASSERT_EQ(index.num_followed(state), num_followed);
  ASSERT_EQ(index.best_next(state), best == SuffixIndex::kNone ? best : index.Next(state, best));
}

// One state per set of end positions, and one for the empty string: the automaton is minimal.
int NumEndSets(const NaiveSuffixIndex& naive) {
  std::set<std::vector<int>> sets;
  for (const Tokens& string : naive.Substrings()) sets.insert(naive.Ends(string));
  return static_cast<int>(sets.size()) + 1;
}

// A reader of its own text whose cursor moves only now and then relative to the index's growth.
struct Reader {
  Cursor cursor;
  Tokens read;
  int max_length;

  void Read(const SuffixIndex& index, const NaiveSuffixIndex& naive, TokenId token) {
    // What a cursor knows was true when it last moved; longer matches may exist since.
    const int held = cursor.length;
    read.push_back(token);
    index.Advance(cursor, token, max_length);
    const auto read_span = std::span<const TokenId>(read);
    const int longest_possible = std::min(held + 1, max_length);
    ASSERT_EQ(cursor.length, naive.LongestMatch(read_span, longest_possible));
    ASSERT_EQ(cursor.state, Find(index, read_span.last(cursor.length)));
  }

  void ExpectResolves(const SuffixIndex& index) {
    Cursor resolved = cursor;
    index.Resolve(resolved);
    ASSERT_EQ(resolved.length, cursor.length);
    ASSERT_EQ(resolved.state, Find(index, std::span<const TokenId>(read).last(cursor.length)));
  }
};

struct Example {
  explicit Example(unsigned seed)
      : random(seed), index(1 + Draw(random, 7)), alphabet(1 + Draw(random, 4)) {
    for (int i = 0; i < 3; ++i) {
      readers.push_back({.cursor = {}, .read = {}, .max_length = i == 0 ? kNoLimit : 1 + i * 2});
    }
  }

  void Append(TokenId token) {
    index.Advance(own, token, own_max_length);
    index.Append(token);
    naive.Append(token);
    current.push_back(token);
  }

  void StartSequence() {
    index.StartSequence();
    naive.StartSequence();
    own = {};
    current.clear();
  }

  std::mt19937 random;
  SuffixIndex index;
  NaiveSuffixIndex naive;
  int alphabet;
  int own_max_length = 1 + Draw(random, 9);
  Cursor own;
  Tokens current;  // sequence
  std::vector<Reader> readers;
};

TEST(SuffixIndexTest, EveryAnswerEqualsABruteForceScan) {
  for (int seed = 0; seed < NumExamples(400, 12000); ++seed) {
    SCOPED_TRACE(seed);
    Example example(seed);
    const int num_ops = 4 + Draw(example.random, 40);
    const bool several = seed % 2 == 1;
    for (int op = 0; op < num_ops; ++op) {
      if (several && Draw(example.random, 8) == 0) example.StartSequence();
      example.Append(Draw(example.random, example.alphabet));
      ASSERT_NO_THROW(example.index.CheckIntegrity());
      for (Reader& reader : example.readers) {
        if (Draw(example.random, 2) == 0) {
          reader.Read(example.index, example.naive, Draw(example.random, example.alphabet));
        }
        reader.ExpectResolves(example.index);
      }
    }
    EXPECT_EQ(std::vector<TokenId>(example.index.text().begin(), example.index.text().end()),
              example.naive.text());
    for (const Tokens& string : example.naive.Substrings()) {
      ExpectAnswersOf(example.naive, example.index, string);
    }
    ASSERT_EQ(example.index.num_states(), NumEndSets(example.naive));
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

TEST(SuffixIndexTest, CursorOverItsOwnTextIsAtTheLongestEarlierOccurrence) {
  for (int seed = 0; seed < NumExamples(200, 2000); ++seed) {
    SCOPED_TRACE(seed);
    Example example(seed);
    for (int op = 0; op < 40; ++op) {
      if (Draw(example.random, 15) == 0) example.StartSequence();
      const NaiveSuffixIndex before = example.naive;
      example.Append(Draw(example.random, example.alphabet));
      const std::span<const TokenId> text = example.current;
      const int length = before.LongestMatch(text, example.own_max_length);
      ASSERT_EQ(example.own.length, length);
      Cursor cursor = example.own;
      example.index.Resolve(cursor);
      ASSERT_EQ(cursor.state, Find(example.index, text.last(length)));
      if (length > 0) {
        ASSERT_EQ(example.index.first_end(cursor.state), before.Ends(text.last(length)).front());
        ASSERT_LT(example.index.first_end(cursor.state),
                  static_cast<int>(example.index.text().size()) - 1);
      }
    }
  }
}

TEST(SuffixIndexTest, GrowingStepByStepEqualsBuildingAtOnce) {
  for (int seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    Tokens text;
    SuffixIndex grown(4);
    for (int i = 0; i < 60; ++i) {
      text.push_back(Draw(random, 3));
      grown.Append(text.back());
      SuffixIndex built(4);
      AppendAll(built, text);
      ASSERT_EQ(built.num_states(), grown.num_states());
      for (int s = 0; s < built.num_states(); ++s) {
        ASSERT_EQ(built.length(s), grown.length(s));
        ASSERT_EQ(built.link(s), grown.link(s));
        ASSERT_EQ(built.first_end(s), grown.first_end(s));
        ASSERT_EQ(built.count(s), grown.count(s));
        ASSERT_EQ(built.num_followed(s), grown.num_followed(s));
        ASSERT_EQ(built.best_next(s), grown.best_next(s));
        ASSERT_EQ(Continuations(built, s), Continuations(grown, s));
      }
    }
  }
}

TEST(SuffixIndexTest, LargeAlphabetsKeepEveryContinuation) {
  std::mt19937 random(7);
  SuffixIndex index(3);
  NaiveSuffixIndex naive;
  for (int i = 0; i < 600; ++i) {
    const TokenId token = i % 2 == 0 ? 2147483647 : Draw(random, 250);
    index.Append(token);
    naive.Append(token);
  }
  index.CheckIntegrity();
  ExpectAnswersOf(naive, index, {2147483647});
  for (TokenId token = 0; token < 250; ++token) {
    if (!naive.Ends(Tokens{token}).empty()) ExpectAnswersOf(naive, index, {token});
  }
}

TEST(SuffixIndexTest, RepetitiveTextNeedsOneStatePerToken) {
  SuffixIndex index(24);
  Cursor cursor;
  constexpr int kNumTokens = 200000;
  for (int i = 0; i < kNumTokens; ++i) {
    index.Advance(cursor, 5, kNoLimit);
    index.Append(5);
  }
  EXPECT_EQ(index.num_states(), kNumTokens + 1);
  EXPECT_EQ(cursor.length, kNumTokens - 1);
  for (int length = 1; length <= 24; ++length) {
    index.Resolve(cursor, 25 - length);
    EXPECT_EQ(index.count(cursor.state), kNumTokens - (25 - length) + 1);
    EXPECT_EQ(index.first_end(cursor.state), 24 - length);
  }
}

TEST(SuffixIndexTest, NoMatchSpansTwoSequences) {
  SuffixIndex index(8);
  AppendAll(index, Tokens{1, 2});
  index.StartSequence();
  index.StartSequence();
  AppendAll(index, Tokens{3, 4});
  EXPECT_EQ(index.text().size(), 5u);
  Cursor cursor;
  for (const TokenId token : {1, 2, 3}) index.Advance(cursor, token, kNoLimit);
  EXPECT_EQ(cursor.length, 1);
  EXPECT_EQ(Find(index, Tokens{2, 3}), SuffixIndex::kNone);
  EXPECT_EQ(index.best_next(Find(index, Tokens{2})), SuffixIndex::kNone);
}

TEST(SuffixIndexTest, RepeatingAWholeSequenceAddsNoState) {
  SuffixIndex index(8);
  const Tokens sequence = {1, 2, 3, 1, 2, 4};
  AppendAll(index, sequence);
  const int num_states = index.num_states();
  index.StartSequence();
  AppendAll(index, sequence);
  EXPECT_EQ(index.num_states(), num_states);
  EXPECT_EQ(index.count(Find(index, Tokens{1, 2})), 4);
  EXPECT_EQ(index.first_end(Find(index, sequence)), 5);
}

TEST(SuffixIndexTest, OfEquallyFrequentContinuationsTheLowestTokenIsBest) {
  SuffixIndex index(4);
  AppendAll(index, Tokens{9, 7, 9, 3, 9, 5, 9});
  EXPECT_EQ(index.last_token(index.best_next(Find(index, Tokens{9}))), 3);
  AppendAll(index, Tokens{5});
  EXPECT_EQ(index.last_token(index.best_next(Find(index, Tokens{9}))), 5);
}

TEST(SuffixIndexTest, NegativeTokensAndDepthsAreRefused) {
  EXPECT_THROW(SuffixIndex(0), InternalError);
  SuffixIndex index(1);
  EXPECT_THROW(index.Append(-1), InternalError);
  EXPECT_TRUE(index.text().empty());
}

TEST(SuffixIndexTest, IntegrityCheckNoticesEveryKindOfDamage) {
  using Peer = SuffixIndexTestPeer;
  const auto broken = [](auto damage) {
    SuffixIndex index(4);
    AppendAll(index, Tokens{1, 2, 1, 3, 1, 2, 2, 1, 3, 3});
    index.CheckIntegrity();
    damage(index);
    EXPECT_THROW(index.CheckIntegrity(), InternalError);
  };
  broken([](SuffixIndex& index) { ++Peer::State(index, 3).count; });
  broken([](SuffixIndex& index) { ++Peer::State(index, 1).num_followed; });
  broken([](SuffixIndex& index) { ++Peer::State(index, 4).length; });
  broken([](SuffixIndex& index) { Peer::State(index, 4).link = 4; });
  broken([](SuffixIndex& index) { Peer::State(index, 4).link = SuffixIndex::kRoot; });
  broken([](SuffixIndex& index) { ++Peer::State(index, 2).first_end; });
  broken([](SuffixIndex& index) { Peer::State(index, 1).best_next = SuffixIndex::kNone; });
  broken([](SuffixIndex& index) { Peer::State(index, 1).more_edges = SuffixIndex::kNone; });
  broken([](SuffixIndex& index) { Peer::State(index, 1).first_target = 1; });
  broken([](SuffixIndex& index) { Peer::Edges(index)[0].target = 1; });
  broken([](SuffixIndex& index) { Peer::Edges(index)[0].token = 77; });
  broken([](SuffixIndex& index) { Peer::Edges(index)[0].next_edge = 0; });
  broken([](SuffixIndex& index) { Peer::Buckets(index).assign(16, SuffixIndex::kNone); });
  broken([](SuffixIndex& index) { Peer::Tail(index) = {}; });
}

TEST(SuffixIndexTest, MemoryGrowsWithTheTextAndNotWithItsSquare) {
  std::mt19937 random(3);
  SuffixIndex index(24);
  for (int i = 0; i < 50000; ++i) index.Append(Draw(random, 4));
  EXPECT_GT(index.num_bytes(), 50000 * 40);
  EXPECT_LT(index.num_bytes(), 50000 * 250);
}

}  // namespace
}  // namespace forerun
