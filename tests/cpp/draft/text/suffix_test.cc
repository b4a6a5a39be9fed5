#include "cpp/draft/text/suffix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "cpp/draft/make_drafter.h"
#include "cpp/draft/text/confidence.h"
#include "cpp/draft/text/ngram.h"
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

Tokens RandomTokens(std::mt19937& random, int size, int alphabet) {
  Tokens tokens(size);
  for (TokenId& token : tokens) token = Draw(random, alphabet);
  return tokens;
}

SuffixOptions Options(int depth, double factor = 1.0, double min_prob = 0.1) {
  return {.max_tree_depth = depth,
          .max_cached_requests = 100,
          .max_spec_factor = factor,
          .min_token_prob = min_prob};
}

NaiveSuffixIndex Naive(const std::vector<Tokens>& sequences) {
  NaiveSuffixIndex naive;
  for (const Tokens& sequence : sequences) {
    naive.StartSequence();
    for (const TokenId token : sequence) naive.Append(token);
  }
  return naive;
}

// Past outputs by the documented rule: segments of an eighth of the bound, the oldest dropped.
class NaiveHistory {
 public:
  explicit NaiveHistory(int bound) : bound_(bound), segment_size_((bound + 7) / 8) {}

  void Add(const Tokens& output) {
    if (bound_ == 0 || output.empty()) return;
    int total = 0;
    for (const auto& segment : segments) total += static_cast<int>(segment.size());
    if (total == bound_) segments.erase(segments.begin());
    if (segments.empty() || static_cast<int>(segments.back().size()) == segment_size_) {
      if (segments.size() == 8) segments.erase(segments.begin());
      segments.emplace_back();
    }
    segments.back().push_back(output);
  }

  std::vector<std::vector<Tokens>> segments;

 private:
  int bound_, segment_size_;
};

// Counts everything again for every match length, by the formulas of suffix.h.
class Oracle {
 public:
  Oracle(const SuffixOptions& options, const Tokens& text, int max_tokens)
      : options_(options), text_(text), max_tokens_(max_tokens) {}

  void Consider(const NaiveSuffixIndex& source) {
    const int depth = options_.max_tree_depth;
    const int longest = std::min(depth - 1, static_cast<int>(text_.size()));
    for (int length = longest; length >= 1; --length) {
      const Tokens match(text_.end() - length, text_.end());
      const double by_factor = std::floor(options_.max_spec_factor * length + 1e-6);
      const int by_match = static_cast<int>(std::min<double>(by_factor, depth - length));
      const int limit = std::min(max_tokens_, by_match);
      double score = 0;
      const Tokens path = Follow(source, match, limit, score);
      if (score <= score_) continue;
      score_ = score;
      draft = path;
      // The confidence depends on the longest context with the same occurrences.
      int trusted = length;
      while (trusted < longest &&
             source.Ends(Tokens(text_.end() - trusted - 1, text_.end())).size() ==
                 source.Ends(match).size()) {
        ++trusted;
      }
      Recount(source, trusted);
    }
  }

  Tokens draft;
  std::vector<float> confidence;

 private:
  Tokens Follow(const NaiveSuffixIndex& source, Tokens context, int limit, double& score) const {
    Tokens path;
    double prob = 1;
    while (static_cast<int>(path.size()) < limit) {
      TokenId best = -1;
      int best_count = 0, total = 0;
      for (const auto& [token, count] : source.Continuations(context)) {
        total += count;
        if (count > best_count) {
          best = token;
          best_count = count;
        }
      }
      if (best_count == 0) break;
      prob *= static_cast<double>(best_count) / total;
      if (prob < options_.min_token_prob) break;
      score += prob;
      path.push_back(best);
      context.push_back(best);
    }
    return path;
  }

  void Recount(const NaiveSuffixIndex& source, int match_length) {
    Tokens context(text_.end() - match_length, text_.end());
    confidence.clear();
    for (const TokenId token : draft) {
      const auto continuations = source.Continuations(context);
      int total = 0;
      for (const auto& [unused, count] : continuations) total += count;
      confidence.push_back(
          CountConfidence(continuations.at(token), total, static_cast<int>(context.size())));
      context.push_back(token);
    }
  }

  SuffixOptions options_;
  Tokens text_;
  int max_tokens_;
  double score_ = 0;
};

struct LiveRequest {
  Tokens text;
  std::size_t num_prompt_tokens;
};

struct Example {
  explicit Example(unsigned seed) : random(seed), options(Options(2 + Draw(random, 8))) {
    const double factors[] = {0.3, 0.5, 1.0, 1.5, 4.0, 1e12};
    const double min_probs[] = {0.0, 0.1, 0.4, 1.0};
    options.max_spec_factor = factors[Draw(random, 6)];
    options.min_token_prob = min_probs[Draw(random, 4)];
    options.max_cached_requests = Draw(random, 12);
    alphabet = 1 + Draw(random, 4);
  }

  std::mt19937 random;
  SuffixOptions options;
  int alphabet;
};

TEST(SuffixDrafterTest, EveryDraftEqualsABruteForceRecount) {
  int num_drafts = 0;
  for (int seed = 0; seed < NumExamples(300, 10000); ++seed) {
    SCOPED_TRACE(seed);
    Example example(seed);
    std::mt19937& random = example.random;
    SuffixDrafter drafter(example.options);
    NaiveHistory history(example.options.max_cached_requests);
    std::map<RequestId, LiveRequest> live;
    for (int op = 0; op < 60; ++op) {
      const RequestId id = Draw(random, 3);
      if (!live.contains(id)) {
        const Tokens prompt = RandomTokens(random, Draw(random, 12), example.alphabet);
        drafter.Begin({id, prompt});
        live[id] = {prompt, prompt.size()};
        continue;
      }
      LiveRequest& request = live[id];
      if (Draw(random, 6) == 0) {
        if (Draw(random, 4) == 0) {
          drafter.Forget(id);
        } else {
          drafter.End(id);
          history.Add({request.text.begin() + request.num_prompt_tokens, request.text.end()});
        }
        live.erase(id);
        continue;
      }
      if (Draw(random, 50) == 0) {
        drafter.Reset();
        history.segments.clear();
      }
      const Tokens committed = RandomTokens(random, Draw(random, 5), example.alphabet);
      drafter.Observe(id, committed);
      request.text.insert(request.text.end(), committed.begin(), committed.end());
      if (Draw(random, 3) == 0) continue;

      const int max_tokens = Draw(random, 12);
      Oracle oracle(example.options, request.text, max_tokens);
      oracle.Consider(Naive({request.text}));
      for (auto segment = history.segments.rbegin(); segment != history.segments.rend();
           ++segment) {
        oracle.Consider(Naive(*segment));
      }
      const DraftTree draft = Propose(drafter, id, max_tokens);
      ASSERT_EQ(draft.tokens, oracle.draft);
      ASSERT_EQ(draft.confidence, oracle.confidence);
      for (int i = 0; i < draft.size(); ++i) ASSERT_EQ(draft.parents[i], i - 1);
      num_drafts += !draft.empty();
    }
    drafter.histories().CheckIntegrity();
  }
  EXPECT_GT(num_drafts, 1000);
}

TEST(SuffixDrafterTest, ProposalsDoNotDependOnOtherLiveRequests) {
  for (int seed = 0; seed < 100; ++seed) {
    std::mt19937 random(seed);
    SuffixDrafter alone(Options(6)), crowded(Options(6));
    const Tokens prompt = RandomTokens(random, 10, 3);
    alone.Begin({1, prompt});
    crowded.Begin({1, prompt});
    for (int step = 0; step < 30; ++step) {
      const RequestId other = 2 + step;
      crowded.Begin({other, RandomTokens(random, 10, 3)});
      crowded.Observe(other, RandomTokens(random, 5, 3));
      Propose(crowded, other, 6);
      if (step % 3 == 0) crowded.Forget(other);
      const Tokens committed = RandomTokens(random, Draw(random, 3), 3);
      alone.Observe(1, committed);
      crowded.Observe(1, committed);
      const DraftTree first = Propose(crowded, 1, 6);
      const DraftTree expected = Propose(alone, 1, 6);
      ASSERT_EQ(first.tokens, expected.tokens);
      ASSERT_EQ(first.confidence, expected.confidence);
      ASSERT_EQ(Propose(crowded, 1, 6).tokens, first.tokens);
    }
  }
}

TEST(SuffixDrafterTest, FollowsTheMostFrequentContinuation) {
  SuffixDrafter drafter(Options(24, 2.0));
  drafter.Begin({1, Tokens{1, 2, 8, 0, 1, 2, 9, 0, 1, 2, 9, 0, 1, 2}});
  EXPECT_EQ(Propose(drafter, 1, 2).tokens, (Tokens{9, 0}));
}

TEST(SuffixDrafterTest, PastOutputsButNotPastPromptsAreRemembered) {
  SuffixDrafter drafter(Options(8, 4.0));
  drafter.Begin({1, Tokens{1, 2, 3, 4}});
  drafter.Observe(1, Tokens{5, 6, 7});
  drafter.Begin({2, Tokens{5}});
  EXPECT_TRUE(Propose(drafter, 2, 4).empty());
  drafter.End(1);
  EXPECT_EQ(Propose(drafter, 2, 4).tokens, (Tokens{6, 7}));
  drafter.Begin({3, Tokens{2}});
  EXPECT_TRUE(Propose(drafter, 3, 4).empty());
  drafter.Reset();
  EXPECT_TRUE(Propose(drafter, 2, 4).empty());
}

TEST(SuffixDrafterTest, RequestsLearnFromOutputsOfTheirOwnTenantOnly) {
  SuffixDrafter drafter(Options(8, 4.0));
  drafter.Begin({1, Tokens{}, "a"});
  drafter.Observe(1, Tokens{5, 6, 7});
  drafter.End(1);
  drafter.Begin({2, Tokens{5}, "b"});
  drafter.Begin({3, Tokens{5}});
  drafter.Begin({4, Tokens{5}, "a"});
  EXPECT_TRUE(Propose(drafter, 2, 4).empty());
  EXPECT_TRUE(Propose(drafter, 3, 4).empty());
  EXPECT_EQ(Propose(drafter, 4, 4).tokens, (Tokens{6, 7}));
}

TEST(SuffixDrafterTest, DraftsAreThoseOfTheDrafterWhoseOutputsWereRestored) {
  for (int seed = 0; seed < NumExamples(60, 1000); ++seed) {
    SCOPED_TRACE(seed);
    Example example(seed);
    example.options.max_cached_requests = 1000;  // one segment per tenant
    SuffixDrafter before(example.options), after(example.options);
    std::vector<Tokens> outputs;
    for (RequestId id = 0; id < 20; ++id) {
      outputs.push_back(RandomTokens(example.random, 1 + Draw(example.random, 20), 4));
      before.Begin({id, Tokens{}, id % 3 == 0 ? "a" : "b"});
      before.Observe(id, outputs.back());
      before.End(id);
    }
    for (int i = 19; i >= 0; --i) {
      const PastOutput output = {outputs[i], i % 3 == 0 ? "a" : "b"};
      EXPECT_TRUE(after.Restore(std::span(&output, 1), /*is_last=*/i == 0));
    }
    for (RequestId id = 100; id < 120; ++id) {
      const Tokens prompt = RandomTokens(example.random, 3, 4);
      const char* tenant = id % 2 == 0 ? "a" : "b";
      before.Begin({id, prompt, tenant});
      after.Begin({id, prompt, tenant});
      const DraftTree expected = Propose(before, id, 8);
      const DraftTree draft = Propose(after, id, 8);
      ASSERT_EQ(draft.tokens, expected.tokens);
      ASSERT_EQ(draft.confidence, expected.confidence);
    }
    after.histories().CheckIntegrity();
  }
}

TEST(SuffixDrafterTest, ARequestThatRunsDraftsFromOutputsRestoredMeanwhile) {
  SuffixDrafter drafter(Options(8, 4.0));
  drafter.Begin({1, Tokens{4}});
  const Tokens output = {5, 6, 7};
  const PastOutput past = {output};
  EXPECT_TRUE(drafter.Restore(std::span(&past, 1), /*is_last=*/true));
  drafter.Observe(1, Tokens{5});
  EXPECT_EQ(Propose(drafter, 1, 4).tokens, (Tokens{6, 7}));
}

TEST(SuffixDrafterTest, WhatWasResetIsNotRestored) {
  SuffixDrafter drafter(Options(8, 4.0));
  const Tokens output = {5, 6, 7};
  const PastOutput past = {output};
  drafter.Restore(std::span(&past, 1), /*is_last=*/true);
  drafter.Reset();
  drafter.Begin({1, Tokens{5}});
  EXPECT_TRUE(Propose(drafter, 1, 4).empty());
  EXPECT_FALSE(drafter.Restore(std::span(&past, 1), /*is_last=*/true));
}

TEST(SuffixDrafterTest, ForgottenRequestsLeaveNoTrace) {
  SuffixDrafter drafter(Options(8));
  drafter.Begin({1, Tokens{}});
  drafter.Observe(1, Tokens{5, 6, 7});
  drafter.Forget(1);
  EXPECT_EQ(drafter.histories().num_requests(), 0);
}

TEST(SuffixDrafterTest, MatchAndDraftTogetherStayWithinTheTreeDepth) {
  for (int depth = 2; depth <= 12; ++depth) {
    SuffixDrafter drafter(Options(depth, 100.0));
    drafter.Begin({1, Tokens(50, 3)});
    EXPECT_EQ(Propose(drafter, 1, 100).size(), depth - 1);  // a match of 1 leaves the most
  }
}

TEST(SuffixDrafterTest, TheDraftIsAtMostTheFactorTimesTheMatch) {
  const Tokens text = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3};
  for (const auto& [factor, expected] :
       {std::pair{1.0, 3}, {2.0, 6}, {0.5, 1}, {0.34, 1}, {0.2, 0}}) {
    SuffixDrafter drafter(Options(24, factor));
    drafter.Begin({1, text});
    EXPECT_EQ(Propose(drafter, 1, 100).size(), expected) << factor;
  }
}

TEST(SuffixDrafterTest, TokensBelowTheLeastPathProbabilityAreNotDrafted) {
  const Tokens text = {1, 2, 1, 3, 1};
  SuffixDrafter strict(Options(4, 1.0, 0.6)), lenient(Options(4, 1.0, 0.5));
  strict.Begin({1, text});
  lenient.Begin({1, text});
  EXPECT_TRUE(Propose(strict, 1, 4).empty());
  EXPECT_EQ(Propose(lenient, 1, 4).tokens, Tokens{2});
}

TEST(MakeDrafterTest, MakesTheDrafterOfTheMethod) {
  SpeculativeOptions options;
  EXPECT_EQ(MakeDrafter(options), nullptr);
  options.method = NgramOptions();
  EXPECT_NE(dynamic_cast<NgramDrafter*>(MakeDrafter(options).get()), nullptr);
  options.method = SuffixOptions();
  EXPECT_NE(dynamic_cast<SuffixDrafter*>(MakeDrafter(options).get()), nullptr);
}

}  // namespace
}  // namespace forerun
