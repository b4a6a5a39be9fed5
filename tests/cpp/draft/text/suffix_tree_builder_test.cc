// Trees of the suffix drafter: every node, its index and its confidence, computed again by brute
// force.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "cpp/draft/text/suffix.h"
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
  // Some tokens are more frequent than others.
  for (TokenId& token : tokens) token = std::min(Draw(random, alphabet), Draw(random, alphabet));
  return tokens;
}

SuffixOptions TreeOptions(int depth, double factor = 1.0, double min_prob = 0.1) {
  return {.max_tree_depth = depth,
          .max_cached_requests = 100,
          .max_spec_factor = factor,
          .min_token_prob = min_prob,
          .use_tree = true};
}

// The formulas of suffix_tree_builder.h, over scans.
class Oracle {
 public:
  Oracle(const SuffixOptions& options, const Tokens& text) : options_(options), text_(text) {}

  void AddSource(const NaiveSuffixIndex& source) { sources_.push_back(&source); }

  DraftTree Grow(int max_nodes) const {
    const int max_depth = MaxDepth();
    DraftTree draft;
    std::vector<double> path_probs;
    while (draft.size() < max_nodes) {
      double best = 0, confidence = 0;
      int best_parent = kDraftRoot;
      TokenId best_token = -1;
      for (int parent = kDraftRoot; parent < draft.size(); ++parent) {
        const Tokens path = PathOf(draft, parent);
        if (static_cast<int>(path.size()) >= max_depth) continue;
        for (const auto& [token, prob] : Continuations(path)) {
          const double path_prob = (parent < 0 ? 1.0 : path_probs[parent]) * prob;
          if (path_prob < options_.min_token_prob || path_prob <= best) continue;
          if (IsNode(draft, parent, token)) continue;
          best = path_prob;
          confidence = prob;
          best_parent = parent;
          best_token = token;
        }
      }
      if (best_token < 0) break;
      draft.Append(best_token, best_parent, static_cast<float>(confidence));
      path_probs.push_back(best);
    }
    return draft;
  }

 private:
  static bool IsNode(const DraftTree& draft, int parent, TokenId token) {
    for (int i = 0; i < draft.size(); ++i) {
      if (draft.parents[i] == parent && draft.tokens[i] == token) return true;
    }
    return false;
  }

  static Tokens PathOf(const DraftTree& draft, int node) {
    Tokens path;
    for (; node != kDraftRoot; node = draft.parents[node]) {
      path.insert(path.begin(), draft.tokens[node]);
    }
    return path;
  }

  // The longest suffix that a token followed somewhere decides how deep a path may go.
  int MaxDepth() const {
    int longest = 0;
    for (const NaiveSuffixIndex* source : sources_) {
      for (int length = 1; length < options_.max_tree_depth; ++length) {
        if (length > static_cast<int>(text_.size())) break;
        const auto ends = source->Ends(Tokens(text_.end() - length, text_.end()));
        // In the request's own text the occurrence at the end is no earlier one.
        if (ends.size() > (source == sources_[0] ? 1u : 0u)) longest = std::max(longest, length);
      }
    }
    int depth = 0;
    for (int length = 1; length <= longest; ++length) {
      const double by_factor = options_.max_spec_factor * length + 1e-6;
      const double by_depth = options_.max_tree_depth - length;
      depth = std::max(depth, static_cast<int>(std::min(by_factor, by_depth)));
    }
    return depth;
  }

  struct Suffix {
    int length;
    const NaiveSuffixIndex* source;
  };

  std::map<TokenId, double> Continuations(const Tokens& path) const {
    Tokens context = text_;
    context.insert(context.end(), path.begin(), path.end());
    const int longest = std::min(options_.max_tree_depth - 1, static_cast<int>(context.size()));
    std::vector<Suffix> suffixes;
    for (const NaiveSuffixIndex* source : sources_) {
      std::vector<int> known;  // where the next longer suffix ends
      for (int length = longest; length >= 1; --length) {
        const std::vector<int> ends = source->Ends(Tokens(context.end() - length, context.end()));
        if (ends != known) suffixes.push_back({length, source});
        known = ends;
      }
    }
    std::ranges::stable_sort(suffixes, std::greater(), &Suffix::length);
    std::map<TokenId, double> probs;
    double weight = 1;
    for (const Suffix& suffix : suffixes) {
      if (weight < SuffixTreeBuilder::kLeastWeight) break;
      int num_followed = 0;
      const auto counts =
          suffix.source->Continuations(Tokens(context.end() - suffix.length, context.end()));
      for (const auto& [token, count] : counts) num_followed += count;
      if (num_followed == 0) continue;
      const double unseen = 2.0 / suffix.length;
      for (const auto& [token, count] : counts) {
        probs[token] += weight * count / (num_followed + unseen);
      }
      weight *= unseen / (num_followed + unseen);
    }
    return probs;
  }

  const SuffixOptions& options_;
  const Tokens& text_;
  std::vector<const NaiveSuffixIndex*> sources_;
};

TEST(SuffixTreeBuilderTest, EveryTreeEqualsABruteForceRecount) {
  const int num_examples = NumExamples(150, 5000);
  int num_trees = 0;
  for (int seed = 0; seed < num_examples; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const double factors[] = {0.5, 1.0, 2.0, 1e12};
    const double min_probs[] = {0.0, 0.01, 0.1, 0.4};
    const SuffixOptions options =
        TreeOptions(2 + Draw(random, 8), factors[Draw(random, 4)], min_probs[Draw(random, 4)]);
    const int alphabet = 1 + Draw(random, 5);
    SuffixDrafter drafter(options);
    // One segment of the history holds up to an eighth of its bound of 100.
    NaiveSuffixIndex past;
    for (RequestId id = 100; id < 100 + static_cast<RequestId>(Draw(random, 4)); ++id) {
      const Tokens output = RandomTokens(random, 1 + Draw(random, 15), alphabet);
      drafter.Begin({id, Tokens{}});
      drafter.Observe(id, output);
      drafter.End(id);
      past.StartSequence();
      for (const TokenId token : output) past.Append(token);
    }
    Tokens text = RandomTokens(random, Draw(random, 20), alphabet);
    drafter.Begin({1, text});
    for (int step = 0; step < 8; ++step) {
      const Tokens committed = RandomTokens(random, Draw(random, 5), alphabet);
      drafter.Observe(1, committed);
      text.insert(text.end(), committed.begin(), committed.end());
      NaiveSuffixIndex own;
      for (const TokenId token : text) own.Append(token);
      Oracle oracle(options, text);
      oracle.AddSource(own);
      oracle.AddSource(past);
      const int max_nodes = std::min(Draw(random, 14), options.max_tree_depth);
      const DraftTree expected = oracle.Grow(max_nodes);
      const DraftTree draft = Propose(drafter, 1, max_nodes);
      ASSERT_EQ(draft.tokens, expected.tokens);
      ASSERT_EQ(draft.parents, expected.parents);
      ASSERT_EQ(draft.confidence, expected.confidence);
      num_trees += !draft.is_chain();
    }
  }
  EXPECT_GT(num_trees, 2 * num_examples);
}

TEST(SuffixTreeBuilderTest, ADominantContinuationMakesAChain) {
  SuffixDrafter drafter(TreeOptions(12, 4.0));
  drafter.Begin({1, Tokens{1, 2, 3, 4, 5, 6, 1, 2, 3}});
  const DraftTree draft = Propose(drafter, 1, 3);
  EXPECT_EQ(draft.tokens, (Tokens{4, 5, 6}));
  EXPECT_TRUE(draft.is_chain());
}

TEST(SuffixTreeBuilderTest, EqualCountsMakeSiblingsInTheirOrder) {
  SuffixDrafter drafter(TreeOptions(12, 4.0, 0.0));
  drafter.Begin({1, Tokens{1, 7, 9, 1, 8, 9, 1, 7, 9, 1, 6, 9, 1}});
  const DraftTree draft = Propose(drafter, 1, 3);
  EXPECT_EQ(draft.tokens, (Tokens{7, 6, 8}));
  EXPECT_EQ(draft.parents, (std::vector<std::int32_t>{-1, -1, -1}));
}

TEST(SuffixTreeBuilderTest, AShorterSuffixAddsContinuationsThatTheLongerDoesNotHave) {
  // After 5 1 came 2 once; after 1 alone also 3, often.
  SuffixDrafter drafter(TreeOptions(12, 4.0, 0.0));
  drafter.Begin({1, Tokens{5, 1, 2, 4, 1, 3, 4, 1, 3, 4, 1, 3, 0, 5, 1}});
  const DraftTree draft = Propose(drafter, 1, 12);
  std::set<TokenId> children;
  for (int i = 0; i < draft.size(); ++i) {
    if (draft.parents[i] == kDraftRoot) children.insert(draft.tokens[i]);
  }
  EXPECT_EQ(draft.tokens[0], 2);
  EXPECT_EQ(children, (std::set<TokenId>{2, 3}));
}

TEST(SuffixTreeBuilderTest, SiblingsDifferAndNoPathFallsBelowTheLeastProbability) {
  for (int seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    SuffixDrafter drafter(TreeOptions(24, 2.0, 0.05));
    drafter.Begin({1, RandomTokens(random, 200, 6)});
    const DraftTree draft = Propose(drafter, 1, 24);
    std::set<std::pair<int, TokenId>> edges;
    std::vector<double> path_probs;
    for (int i = 0; i < draft.size(); ++i) {
      EXPECT_TRUE(edges.insert({draft.parents[i], draft.tokens[i]}).second);
      const double above = draft.parents[i] < 0 ? 1 : path_probs[draft.parents[i]];
      path_probs.push_back(above * draft.confidence[i]);
      EXPECT_GE(path_probs.back(), 0.05 - 1e-6);
      if (i > 0) {
        EXPECT_LE(path_probs[i], path_probs[i - 1] + 1e-6);
      }
      EXPECT_GT(draft.confidence[i], 0);
      EXPECT_LE(draft.confidence[i], 1);
    }
  }
}

// A token that is followed by more others than kMaxContinuations.
TEST(SuffixTreeBuilderTest, TheMostFrequentOfManyContinuationsIsNeverMissed) {
  SuffixDrafter drafter(TreeOptions(4, 4.0, 0.0));
  Tokens text;
  for (TokenId token = 10; token < 300; ++token) {
    text.insert(text.end(), {1, token});
    if (token == 200) text.insert(text.end(), {1, 5, 1, 5, 1, 5, 1, 5});
  }
  text.push_back(1);
  drafter.Begin({1, text});
  EXPECT_EQ(Propose(drafter, 1, 4).tokens[0], 5);
}

}  // namespace
}  // namespace forerun
