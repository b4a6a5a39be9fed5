// Each option on its own by hand, and all of them at random against a version that looks everything
// up in the whole text.
#include "cpp/sampling/logits_processors.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>

#include "cpp/draft_tree/step_masks.h"
#include "cpp/util/request_error.h"
#include "cpp/verify/verify.h"
#include "tests/cpp/testing/naive_processors.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_params.h"
#include "tests/cpp/testing/toy_grammar.h"

namespace forerun {
namespace {

using Logits = std::vector<float>;
using Tokens = std::vector<TokenId>;

constexpr float kOut = -std::numeric_limits<float>::infinity();

// What is left of `logits` after a prompt, a committed output and a path.
Logits Apply(const Logits& logits, const SamplingParams& params, const Tokens& prompt,
             const Tokens& output, const Tokens& path, const Tokens& end_tokens = {}) {
  Tokens text = prompt;
  LogitsProcessors processors(params, end_tokens, text, 100);
  for (TokenId token : output) {
    text.push_back(token);
    processors.ObserveCommitted();
  }
  std::vector<float> copy;
  const auto result = processors.Apply(logits, 0, path, copy);
  return {result.begin(), result.end()};
}

// A constraint at its first state, with the masks of a draft.
struct MaskedConstraint {
  MaskedConstraint(testing::ToyGrammar grammar, const Tokens& text, const DraftTree& tree)
      : constraint(std::move(grammar)),
        draft(tree),
        cursor(constraint, text, 10, constraint.grammar().vocab_size()),
        masks(constraint.grammar().vocab_size()) {
    masks.Add(cursor, draft);
    masks.Compute();
  }

  testing::ToyConstraint constraint;
  DraftTree draft;
  ConstraintCursor cursor;
  StepMasks masks;
};

TEST(LogitsProcessorsTest, NoOptionNeedsNoProcessors) {
  SamplingParams params;
  EXPECT_FALSE(LogitsProcessors::AreNeeded(params, Tokens{0}));
  params.min_tokens = 3;
  EXPECT_FALSE(LogitsProcessors::AreNeeded(params, {}));
  EXPECT_TRUE(LogitsProcessors::AreNeeded(params, Tokens{0}));
}

TEST(LogitsProcessorsTest, OnlyAllowedTokensKeepTheirLogits) {
  SamplingParams params;
  params.allowed_token_ids = {{2, 0, 2}};
  EXPECT_EQ(Apply({1, 2, 3, 4}, params, {1}, {}, {}), (Logits{1, kOut, 3, kOut}));
}

TEST(LogitsProcessorsTest, AHookSeesWhatAConstraintLeftAndCannotUndoIt) {
  const Tokens text = {9};
  DraftTree draft;
  for (TokenId token : {3, 1, 1}) draft.AppendToChain(token, 1.0f);
  const MaskedConstraint masked({{{-1, 1, -1, 0}, {0, -1, 0, -1}}}, text, draft);
  struct Hook : LogitsHook {
    void Process(std::span<const TokenId>, std::span<const TokenId>,
                 std::span<float> logits) override {
      seen.assign(logits.begin(), logits.end());
      std::ranges::fill(logits, 7.0f);
    }
    Logits seen;
  } hook;
  SamplingParams params;
  params.allowed_token_ids = {{0, 1, 2}};
  params.logit_bias = {{1, 0.5}};
  params.presence_penalty = 1.0;
  Logits copy;
  EXPECT_TRUE(LogitsProcessors::AreNeeded({}, {}, {&masked.cursor, nullptr}));
  EXPECT_TRUE(LogitsProcessors::AreNeeded({}, {}, {nullptr, &hook}));
  LogitsProcessors processors(params, {}, text, 10, {&masked.cursor, &hook});
  processors.Apply(Logits{1, 2, 3, 4}, 0, Tokens{}, copy);
  EXPECT_EQ(hook.seen, (Logits{kOut, 2.5f, kOut, kOut}));
  EXPECT_EQ(copy, (Logits{kOut, 7, kOut, 7}));
  processors.Apply(Logits{1, 2, 3, 4}, 2, Tokens{3, 1}, copy);
  EXPECT_EQ(hook.seen, (Logits{1, kOut, 3, kOut}));
  EXPECT_EQ(copy, (Logits{7, kOut, 7, kOut}));
  EXPECT_THROW(processors.Apply(Logits{1, 2, 3, 4}, 3, Tokens{3, 1, 1}, copy), HookError);
}

TEST(LogitsProcessorsTest, TheLastTokenOfABadWordIsRuledOutOnlyAfterTheOthers) {
  SamplingParams params;
  params.bad_words = {{1, 2, 3}, {0}};
  const Logits logits = {1, 1, 1, 1};
  const Logits without_first = {kOut, 1, 1, 1};
  const Logits without_both = {kOut, 1, 1, kOut};
  EXPECT_EQ(Apply(logits, params, {9}, {}, {}), without_first);
  EXPECT_EQ(Apply(logits, params, {9}, {2}, {}), without_first);
  EXPECT_EQ(Apply(logits, params, {9}, {1, 2}, {}), without_both);
  EXPECT_EQ(Apply(logits, params, {9}, {3, 1}, {2}), without_both);
  EXPECT_EQ(Apply(logits, params, {9}, {3}, {1, 2}), without_both);
  EXPECT_EQ(Apply(logits, params, {9}, {1, 2}, {3}), without_first);
  // The prompt is not output.
  EXPECT_EQ(Apply(logits, params, {1, 2}, {}, {}), without_first);
  EXPECT_EQ(Apply(logits, params, {1}, {2}, {}), without_first);
}

TEST(LogitsProcessorsTest, EndTokensAreOutUntilMinTokensAreThereOrDrafted) {
  SamplingParams params;
  params.min_tokens = 3;
  const Tokens ends = {0, 2};
  const Logits logits = {5, 1, 4};
  EXPECT_EQ(Apply(logits, params, {1, 1, 1}, {}, {}, ends), (Logits{kOut, 1, kOut}));
  EXPECT_EQ(Apply(logits, params, {1}, {1}, {1}, ends), (Logits{kOut, 1, kOut}));
  EXPECT_EQ(Apply(logits, params, {1}, {1}, {1, 1}, ends), logits);
  EXPECT_EQ(Apply(logits, params, {1}, {1, 1, 1}, {}, ends), logits);
}

TEST(LogitsProcessorsTest, EndTokensStayWhereAConstraintAllowsNothingElse) {
  // State 0 allows 0 to 2, state 1 the end tokens alone, state 2 an end token and another.
  const Tokens text = {9}, ends = {0, 2, 0};
  DraftTree draft;
  for (TokenId token : {1, 2}) draft.Append(token, kDraftRoot, 1.0f);
  const MaskedConstraint masked({{{0, 1, 2}, {1, -1, 1}, {2, 2, -1}}}, text, draft);
  SamplingParams params;
  params.min_tokens = 8;
  Logits copy;
  LogitsProcessors processors(params, ends, text, 10, {&masked.cursor, nullptr});
  processors.Apply(Logits{5, 1, 4}, 0, Tokens{}, copy);
  EXPECT_EQ(copy, (Logits{kOut, 1, kOut}));
  processors.Apply(Logits{5, 1, 4}, 1, Tokens{1}, copy);
  EXPECT_EQ(copy, (Logits{5, kOut, 4}));
  processors.Apply(Logits{5, 1, 4}, 2, Tokens{2}, copy);
  EXPECT_EQ(copy, (Logits{kOut, 1, kOut}));
}

TEST(LogitsProcessorsTest, BiasIsAdded) {
  SamplingParams params;
  params.logit_bias = {{0, -100.0}, {2, 1.5}};
  EXPECT_EQ(Apply({1, 2, 3}, params, {1}, {}, {}), (Logits{-99, 2, 4.5}));
}

TEST(LogitsProcessorsTest, RepetitionDividesPositiveAndMultipliesNegativeOfPromptAndOutput) {
  SamplingParams params;
  params.repetition_penalty = 2.0;
  EXPECT_EQ(Apply({4, -4, 4, -4, 4, 0}, params, {0, 1}, {2}, {3, 3}), (Logits{2, -8, 2, -8, 4, 0}));
}

TEST(LogitsProcessorsTest, FrequencyCountsOccurrencesInTheOutputAndPresenceCountsOnce) {
  SamplingParams params;
  params.frequency_penalty = 0.5;
  EXPECT_EQ(Apply({9, 9, 9, 9}, params, {0, 0}, {1, 1, 2}, {2, 3}), (Logits{9, 8, 8, 8.5}));
  params.frequency_penalty = 0.0;
  params.presence_penalty = -0.5;
  EXPECT_EQ(Apply({9, 9, 9, 9}, params, {0, 0}, {1, 1}, {2, 2}), (Logits{9, 9.5, 9.5, 9}));
}

TEST(LogitsProcessorsTest, OptionsApplyInTheDocumentedOrder) {
  SamplingParams params;
  params.logit_bias = {{0, 2.0}, {1, 2.0}};
  params.allowed_token_ids = {{0}};
  params.repetition_penalty = 2.0;
  params.frequency_penalty = 1.0;
  params.presence_penalty = 0.25;
  // ((-1 + 2) / 2 - 2 * 1) - 0.25; had the bias come later, -1 * 2 + 2 ...
  EXPECT_EQ(Apply({-1, 5}, params, {0}, {0}, {0}), (Logits{-1.75, kOut}));
}

TEST(LogitsProcessorsTest, WhereNothingAppliesTheLogitsThemselvesComeBack) {
  SamplingParams params;
  params.bad_words = {{1, 2}};
  params.min_tokens = 1;
  params.presence_penalty = 1.0;
  const Tokens ends = {0};
  Tokens text = {1};
  const LogitsProcessors processors(params, ends, text, 10);
  const Logits logits = {1, 2, 3};
  std::vector<float> copy;
  params.min_tokens = 0;  // what is left needs an output
  EXPECT_EQ(processors.Apply(logits, 0, {}, copy).data(), logits.data());
  EXPECT_TRUE(copy.empty());
  const float* changed = processors.Apply(logits, 0, Tokens{1}, copy).data();
  EXPECT_EQ(changed, copy.data());
}

TEST(LogitsProcessorsTest, AnyPathIsAsIfCommitted) {
  std::mt19937 random(1);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int example = 0; example < testing::NumExamples(400, 40000); ++example) {
    const int vocab_size = pick(3, 200);
    SamplingParams params;
    testing::RandomParams(random, vocab_size, 0.4).SetLogitsOptions(params);
    params.min_tokens = pick(0, 12);
    const Tokens ends = {pick(0, vocab_size - 1), pick(0, vocab_size - 1)};
    const int alphabet = pick(1, vocab_size);
    Tokens text(pick(1, 12));
    for (TokenId& token : text) token = pick(0, alphabet - 1);
    const Tokens prompt = text;
    const int max_tokens = static_cast<int>(text.size()) + 20;
    LogitsProcessors processors(params, ends, text, max_tokens);
    Tokens output;
    std::vector<float> copy;
    while (std::ssize(text) < max_tokens) {
      Tokens path(pick(0, 5));
      for (TokenId& token : path) token = pick(0, alphabet - 1);
      Logits logits(vocab_size);
      for (float& logit : logits) logit = static_cast<float>(pick(-900, 900)) / 100.0f;
      Tokens all = output;
      all.insert(all.end(), path.begin(), path.end());
      const Logits expected = testing::NaiveProcess(logits, params, prompt, all, ends);
      const auto got = processors.Apply(logits, 0, path, copy);
      ASSERT_EQ(Logits(got.begin(), got.end()), expected) << "example " << example;
      for (int i = pick(1, 4); i > 0 && std::ssize(text) < max_tokens; --i) {
        output.push_back(pick(0, alphabet - 1));
        text.push_back(output.back());
      }
      processors.ObserveCommitted();
    }
  }
}

TEST(LogitsProcessorsTest, VerifyAppliesThemAlongThePath) {
  SamplingParams params;
  params.temperature = 0;
  params.presence_penalty = 2.0;
  Tokens text = {0};
  const LogitsProcessors processors(params, {}, text, 10);
  SamplingRule rule = MakeSamplingRule(params, 1);
  rule.processors = &processors;
  // The same row three times: whatever was emitted, or accepted, becomes less likely.
  const Logits row = {3.0f, 2.5f, 2.0f, 0.0f};
  Logits rows;
  for (int i = 0; i < 3; ++i) rows.insert(rows.end(), row.begin(), row.end());
  DraftTree draft;
  draft.AppendToChain(0, 1.0f);
  draft.AppendToChain(1, 1.0f);
  SamplerScratch scratch;
  Verdict verdict;
  Verify(draft, {rows.data(), 4, 4}, rule, 0, scratch, verdict);
  EXPECT_EQ(verdict.tokens, (Tokens{0, 1, 2}));
}

TEST(TokenCountsTest, CountsAsAMapDoes) {
  std::mt19937 random(2);
  for (int max_tokens : {1, 2, 7, 500}) {
    TokenCounts counts(max_tokens);
    std::map<TokenId, int> expected;
    for (int i = 0; i < max_tokens; ++i) {
      const auto token = static_cast<TokenId>(random() % (max_tokens < 10 ? 5 : 300) * 64);
      EXPECT_EQ(counts.Contains(token), expected.contains(token));
      const bool in_output = random() % 3 != 0;
      in_output ? counts.AddFromOutput(token) : counts.AddFromPrompt(token);
      expected[token] += in_output;
    }
    EXPECT_EQ(counts.entries().size(), expected.size());
    for (const TokenCounts::Entry& entry : counts.entries()) {
      EXPECT_EQ(entry.num_in_output, expected.at(entry.token));
    }
  }
}

}  // namespace
}  // namespace forerun
