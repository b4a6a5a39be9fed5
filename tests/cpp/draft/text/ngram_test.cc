#include "cpp/draft/text/ngram.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cpp/draft/text/confidence.h"
#include "forerun/error.h"
#include "tests/cpp/testing/naive_suffix_index.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/propose.h"

namespace forerun {
namespace {

using testing::Draw;
using testing::NaiveSuffixIndex;
using testing::NumExamples;
using testing::Propose;
using testing::Tokens;

// Scans the text for the longest n-gram, from its beginning.
Tokens RescanForNgram(const Tokens& text, const NgramOptions& options, int max_tokens) {
  const int size = static_cast<int>(text.size());
  for (int n = options.prompt_lookup_max; n >= options.prompt_lookup_min; --n) {
    for (int end = n; end < size; ++end) {
      if (!std::equal(text.end() - n, text.end(), text.begin() + (end - n))) continue;
      return {text.begin() + end, text.begin() + std::min(size, end + max_tokens)};
    }
  }
  return {};
}

// The match's length, as the rescan finds it.
int MatchLength(const Tokens& text, const NgramOptions& options) {
  int n = options.prompt_lookup_max;
  for (NgramOptions exact = options; n > 0; --n) {
    exact.prompt_lookup_min = exact.prompt_lookup_max = n;
    if (!RescanForNgram(text, exact, 1).empty()) break;
  }
  return n;
}

std::vector<float> RecountedConfidence(const Tokens& text, const Tokens& draft, int match_length,
                                       int lookup_max) {
  NaiveSuffixIndex naive;
  for (const TokenId token : text) naive.Append(token);
  Tokens context(text.end() - match_length, text.end());
  std::vector<float> confidence;
  for (const TokenId token : draft) {
    int num_followed = 0;
    const auto continuations = naive.Continuations(context);
    for (const auto& [unused, count] : continuations) num_followed += count;
    confidence.push_back(
        CountConfidence(continuations.at(token), num_followed, static_cast<int>(context.size())));
    context.push_back(token);
    if (static_cast<int>(context.size()) > lookup_max) context.erase(context.begin());
  }
  return confidence;
}

TEST(NgramDrafterTest, EveryDraftEqualsARescan) {
  int num_drafts = 0;
  for (int seed = 0; seed < NumExamples(300, 10000); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int lookup_min = 1 + Draw(random, 3);
    const NgramOptions options = {.prompt_lookup_max = lookup_min + Draw(random, 4),
                                  .prompt_lookup_min = lookup_min};
    NgramDrafter drafter(options);
    const int alphabet = 1 + Draw(random, 5);
    Tokens text;
    for (int i = Draw(random, 20); i > 0; --i) text.push_back(Draw(random, alphabet));
    drafter.Begin({7, text});
    for (int step = 0; step < 20; ++step) {
      Tokens committed;
      for (int i = Draw(random, 4); i > 0; --i) committed.push_back(Draw(random, alphabet));
      drafter.Observe(7, committed);
      text.insert(text.end(), committed.begin(), committed.end());
      const int max_tokens = Draw(random, 8);
      const DraftTree draft = Propose(drafter, 7, max_tokens);
      ASSERT_EQ(draft.tokens, RescanForNgram(text, options, max_tokens));
      for (int i = 0; i < draft.size(); ++i) ASSERT_EQ(draft.parents[i], i - 1);
      if (draft.empty()) continue;
      ++num_drafts;
      ASSERT_EQ(draft.confidence,
                RecountedConfidence(text, draft.tokens, MatchLength(text, options),
                                    options.prompt_lookup_max));
    }
    drafter.End(7);
  }
  EXPECT_GT(num_drafts, 1000);
}

TEST(NgramDrafterTest, DraftsTheContinuationOfTheEarliestOccurrence) {
  NgramDrafter drafter({.prompt_lookup_max = 3, .prompt_lookup_min = 2});
  drafter.Begin({1, Tokens{1, 2, 3, 4, 2, 3, 5, 2, 3}});
  EXPECT_EQ(Propose(drafter, 1, 4).tokens, (Tokens{4, 2, 3, 5}));
}

TEST(NgramDrafterTest, ALongerMatchWinsOverAnEarlierOne) {
  NgramDrafter drafter({.prompt_lookup_max = 3, .prompt_lookup_min = 2});
  drafter.Begin({1, Tokens{2, 3, 9, 1, 2, 3, 8, 1, 2, 3}});
  EXPECT_EQ(Propose(drafter, 1, 2).tokens, (Tokens{8, 1}));
}

TEST(NgramDrafterTest, TheDraftStopsAtTheEndOfTheText) {
  NgramDrafter drafter({.prompt_lookup_max = 3, .prompt_lookup_min = 2});
  drafter.Begin({1, Tokens{1, 2, 3, 1, 2}});
  EXPECT_EQ(Propose(drafter, 1, 4).tokens, (Tokens{3, 1, 2}));
}

TEST(NgramDrafterTest, DraftsNothingWithoutAMatchOfTheLeastLength) {
  NgramDrafter drafter({.prompt_lookup_max = 5, .prompt_lookup_min = 3});
  drafter.Begin({1, Tokens{1, 2, 9, 1, 2}});
  EXPECT_TRUE(Propose(drafter, 1, 4).empty());
  drafter.Begin({2, Tokens{}});
  EXPECT_TRUE(Propose(drafter, 2, 4).empty());
}

TEST(NgramDrafterTest, DraftsAsManyTokensAsAreAllowed) {
  NgramDrafter drafter({.prompt_lookup_max = 2, .prompt_lookup_min = 1});
  drafter.Begin({1, Tokens(30, 4)});
  EXPECT_EQ(Propose(drafter, 1, 3).tokens, Tokens(3, 4));
  EXPECT_TRUE(Propose(drafter, 1, 0).empty());
}

TEST(NgramDrafterTest, LongerMatchesHaveMoreConfidence) {
  NgramDrafter drafter({.prompt_lookup_max = 8, .prompt_lookup_min = 2});
  drafter.Begin({1, Tokens{1, 2, 3, 4, 5, 6, 9, 7, 1, 2}});
  drafter.Begin({2, Tokens{1, 2, 3, 4, 5, 6, 9, 7, 1, 2, 3, 4, 5, 6}});
  EXPECT_LT(Propose(drafter, 1, 1).confidence[0], Propose(drafter, 2, 1).confidence[0]);
}

TEST(NgramDrafterTest, RequestsDoNotSeeEachOther) {
  NgramDrafter drafter({.prompt_lookup_max = 3, .prompt_lookup_min = 2});
  drafter.Begin({1, Tokens{1, 2, 3, 4}});
  drafter.Begin({2, Tokens{8, 1, 2}});
  EXPECT_TRUE(Propose(drafter, 2, 4).empty());
  drafter.End(1);
  EXPECT_TRUE(Propose(drafter, 2, 4).empty());
  EXPECT_THROW(Propose(drafter, 1, 4), InternalError);
  drafter.Begin({1, Tokens{5}});
  EXPECT_THROW(drafter.Begin({1, Tokens{5}}), InternalError);
  drafter.Forget(1);
  EXPECT_THROW(drafter.Forget(1), InternalError);
}

}  // namespace
}  // namespace forerun
