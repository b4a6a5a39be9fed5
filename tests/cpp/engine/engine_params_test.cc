// Sampling parameters in the engine: log-probabilities, special tokens, no allowed token.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cpp/engine/check_request.h"
#include "cpp/sampling/logprobs.h"
#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/scripted_drafter.h"

namespace forerun {
namespace {

using testing::CountingEngineTest;
using testing::CountingLogits;
using testing::Finished;
using testing::Greedy;
using testing::kVocabSize;
using testing::RightToken;
using testing::RunToEnd;
using testing::ScriptedDrafter;
using testing::ScriptedExecutor;

using EngineParamsTest = CountingEngineTest;

TEST_F(EngineParamsTest, LogprobsComeWithTheTokensThatAreEmittedAndNoOthers) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  SamplingParams params = Greedy(30);
  params.stop_token_ids = {9};
  params.logprobs = 2;
  engine.Submit(std::vector<TokenId>{1, 2}, params);
  engine.Submit(std::vector<TokenId>{1, 2}, Greedy(3));
  int num_tokens = 0;
  while (engine.HasUnfinished()) {
    for (const RequestUpdate& update : engine.Step()) {
      EXPECT_EQ(update.prompt_logprobs.size(), 0);
      if (update.id == 1) {
        EXPECT_EQ(update.logprobs.size(), 0);
        continue;
      }
      ASSERT_EQ(update.logprobs.size(), std::ssize(update.new_tokens));
      for (int i = 0; i < update.logprobs.size(); ++i) {
        const auto entries = update.logprobs[i];
        ASSERT_EQ(entries.size(), 3u);
        EXPECT_EQ(entries[0].token, update.new_tokens[i]);
        EXPECT_EQ(entries[0], entries[1]);
        EXPECT_EQ(entries[2].rank, 2);
        EXPECT_EQ(entries[2].token, 0);  // all others are equal
        EXPECT_NEAR(entries[0].logprob - entries[2].logprob, 9.0, 1e-5);
      }
      num_tokens += update.logprobs.size();
    }
  }
  EXPECT_EQ(num_tokens, 7);  // 3 to 9
}

TEST_F(EngineParamsTest, APriorityNeedsThePolicy) {
  testing::TestEngine fcfs(config_, executor_, nullptr);
  EXPECT_THROW(fcfs.Submit(std::vector<TokenId>{1}, Greedy(1), {}, {.priority = 1}),
               InvalidArgument);
  EXPECT_FALSE(fcfs.HasUnfinished());
  config_.scheduling_policy = SchedulingPolicy::kPriority;
  config_.max_num_seqs = 1;
  testing::TestEngine engine(config_, executor_, nullptr);
  std::vector<RequestId> finished;
  for (int priority : {2, 0, 1}) {
    engine.Submit(std::vector<TokenId>{1}, Greedy(2), {}, {.priority = priority});
  }
  while (engine.HasUnfinished()) {
    for (const RequestUpdate& update : engine.Step()) {
      if (update.finish_reason != FinishReason::kNone) finished.push_back(update.id);
    }
  }
  EXPECT_EQ(finished, (std::vector<RequestId>{1, 2, 0}));
}

TEST_F(EngineParamsTest, PromptLogprobsComeOnceAndInOrderForAnyChunks) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < 50; ++i) prompt.push_back(i % 7);
  SamplingParams params = Greedy(3);
  params.prompt_logprobs = 1;
  std::vector<TokenLogprob> expected;
  SamplerScratch scratch;
  for (std::size_t i = 1; i < prompt.size(); ++i) {
    AppendLogprobs(CountingLogits(std::span(prompt).first(i)), prompt[i], 1, scratch, expected);
  }
  for (int max_rows : {4, 7, 32, 100}) {
    config_.max_num_batched_tokens = max_rows;
    testing::TestEngine engine = MakeEngine();
    for (int round = 0; round < 2; ++round) {  // the second time the prompt's blocks are cached
      std::vector<TokenLogprob> got;
      engine.Submit(prompt, params);
      while (engine.HasUnfinished()) {
        for (const RequestUpdate& update : engine.Step()) {
          const auto entries = update.prompt_logprobs.entries;
          got.insert(got.end(), entries.begin(), entries.end());
          EXPECT_EQ(update.num_cached_tokens, 0);
        }
      }
      EXPECT_EQ(got, expected);
    }
  }
}

TEST_F(EngineParamsTest, PromptLogprobsOfAPreemptedRequestAreReportedOnce) {
  config_.num_blocks = 16;
  config_.max_num_batched_tokens = 5;
  testing::TestEngine engine = MakeEngine();
  engine.Submit(std::vector<TokenId>{1}, Greedy(60));
  SamplingParams params = Greedy(1);
  params.prompt_logprobs = 0;
  const std::vector<TokenId> prompt(40, 3);
  const RequestId id = engine.Submit(prompt, params);
  int num_scored = 0;
  while (engine.HasUnfinished()) {
    for (const RequestUpdate& update : engine.Step()) {
      if (update.id == id) num_scored += update.prompt_logprobs.size();
    }
  }
  EXPECT_EQ(num_scored, 39);
}

TEST_F(EngineParamsTest, RowsWithPromptLogprobsAreLimitedPerStep) {
  config_.max_model_len = 1200;
  config_.num_blocks = 1000;
  config_.max_num_batched_tokens = 2048;
  ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size, CountingLogits);
  testing::TestEngine engine(config_, executor, nullptr);
  SamplingParams params = Greedy(1);
  params.prompt_logprobs = 0;
  engine.Submit(std::vector<TokenId>(600, 1), params);
  engine.Submit(std::vector<TokenId>(600, 2), params);
  int num_scored = 0;
  while (engine.HasUnfinished()) {
    int num_in_step = 0;
    for (const RequestUpdate& update : engine.Step()) num_in_step += update.prompt_logprobs.size();
    EXPECT_LE(num_in_step, 256 + 1);
    num_scored += num_in_step;
  }
  EXPECT_EQ(num_scored, 2 * 599);
}

TEST_F(EngineParamsTest, LogitsOfAPromptThatAreNotFiniteFailTheRequestAlone) {
  ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size, [](auto prefix) {
    std::vector<float> logits = CountingLogits(prefix);
    if (prefix[0] == 7 && prefix.size() == 6) logits[3] = std::nanf("");
    return logits;
  });
  testing::TestEngine engine(config_, executor, nullptr);
  SamplingParams params = Greedy(4);
  params.prompt_logprobs = 0;
  const RequestId good = engine.Submit(std::vector<TokenId>(10, 1), params);
  const RequestId bad = engine.Submit(std::vector<TokenId>(10, 7), params);
  // A token that is ruled out still counts in the row's softmax.
  SamplingParams biased = Greedy(8);
  biased.allowed_token_ids = {{1}};
  biased.logprobs = 0;
  const RequestId masked = engine.Submit(std::vector<TokenId>(3, 7), biased);
  const auto results = RunToEnd(engine);
  EXPECT_EQ(results.at(good).tokens.size(), 4u);
  EXPECT_EQ(results.at(bad).last.finish_reason, FinishReason::kError);
  EXPECT_NE(results.at(bad).error.find("nan"), std::string::npos);
  EXPECT_EQ(results.at(masked).last.finish_reason, FinishReason::kError);
  EXPECT_EQ(results.at(masked).tokens, (std::vector<TokenId>{1, 1, 1}));
}

TEST_F(EngineParamsTest, SpecialTokensArePartOfTheTextOnlyWithoutSkipSpecialTokens) {
  testing::TestEngine engine = MakeEngine();
  std::vector<std::string> bytes(kVocabSize);
  for (int token = 0; token < kVocabSize; ++token) bytes[token] = std::string(1, 'a' + token);
  engine.SetTokenBytes(bytes, {3});
  SamplingParams params = Greedy(4);
  params.stop = {"ce", "de"};
  const RequestId skipping = engine.Submit(std::vector<TokenId>{1}, params);  // "c(d)ef"
  params.skip_special_tokens = false;
  const RequestId keeping = engine.Submit(std::vector<TokenId>{1}, params);
  const auto results = RunToEnd(engine);
  EXPECT_EQ(results.at(skipping).last.stop_string_index, 0);
  EXPECT_EQ(results.at(skipping).last.num_text_bytes, 0);
  EXPECT_EQ(results.at(keeping).last.stop_string_index, 1);
  EXPECT_EQ(results.at(keeping).last.num_text_bytes, 1);
}

TEST_F(EngineParamsTest, TokensThatAreAddedAsEndsEndTextsUnlessTheyAreIgnored) {
  testing::TestEngine engine = MakeEngine();
  const std::vector<TokenId> prompt = {1};
  engine.AddEosTokens({4, 4, kVocabSize + 7});
  EXPECT_THROW(engine.AddEosTokens({5, -1}), InvalidArgument);
  SamplingParams params = Greedy(8);
  const RequestId ended = engine.Submit(prompt, params);
  EXPECT_THROW(engine.AddEosTokens({5}), InternalError);  // while one is unfinished
  params.ignore_eos = true;
  const RequestId ignoring = engine.Submit(prompt, params);
  const auto results = RunToEnd(engine);
  EXPECT_EQ(results.at(ended).tokens, (std::vector<TokenId>{2, 3, 4}));
  EXPECT_EQ(results.at(ended).last.finish_reason, FinishReason::kStop);
  EXPECT_EQ(results.at(ignoring).tokens.size(), 8);
}

TEST_F(EngineParamsTest, ARequestWithoutAnAllowedTokenFailsWithAMessage) {
  testing::TestEngine engine = MakeEngine();
  SamplingParams params = Greedy(5);
  params.allowed_token_ids = {{3}};
  params.bad_words = {{3, 3}};
  const RequestId id = engine.Submit(std::vector<TokenId>{1}, params);
  const Finished result = RunToEnd(engine).at(id);
  EXPECT_EQ(result.tokens, (std::vector<TokenId>{3}));
  EXPECT_EQ(result.last.finish_reason, FinishReason::kError);
  EXPECT_NE(result.error.find("no token can be sampled"), std::string::npos);
}

TEST(CheckRequestTest, PromptLogprobsThatCannotFitAreRefusedWithTheirBytes) {
  const std::vector<TokenId> prompt((1 << 20) + 1, 7);
  const RequestLimits limits = {.vocab_size = 1 << 30, .max_model_len = 1 << 30};
  SamplingParams params = Greedy(1);
  CheckRequest(prompt, params, limits);
  for (int fitting : {0, 1}) {  // 12 and 24 MiB
    params.prompt_logprobs = fitting;
    CheckRequest(prompt, params, limits);
  }
  for (int whole : {-1, 1 << 30}) {
    params.prompt_logprobs = whole;
    try {
      CheckRequest(prompt, params, limits);
      FAIL();
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.field(), "prompt_logprobs");
      EXPECT_EQ(error.value(), std::to_string(whole));
      // 2^20 rows of 2^30 + 1 entries of 12 bytes.
      EXPECT_NE(error.expected().find("13510798894694400 bytes"), std::string::npos)
          << error.expected();
    }
  }
  CheckRequest(std::vector<TokenId>{7}, params, limits);  // scores nothing
}

}  // namespace
}  // namespace forerun
