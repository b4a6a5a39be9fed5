// Predicted outputs: they are drafted for their own request, with any drafter and without one.
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "cpp/draft/draft_limits.h"
#include "cpp/draft/text/suffix.h"
#include "cpp/engine/engine_core.h"
#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/scripted_drafter.h"
#include "tests/cpp/testing/toy_grammar.h"

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
using testing::Successor;
using testing::WrongToken;
using Tokens = std::vector<TokenId>;

// What the model counts after a token.
Tokens CountAfter(TokenId token, int length) {
  Tokens tokens;
  while (std::ssize(tokens) < length) tokens.push_back(token = Successor(token));
  return tokens;
}

std::shared_ptr<const Prediction> Predict(Tokens tokens) {
  return std::make_shared<const Prediction>(std::move(tokens));
}

class PredictionTest : public CountingEngineTest {
 protected:
  PredictionTest() { config_.num_speculative_tokens = 0; }

  Finished Run(Drafter* drafter, const SamplingParams& params, Tokens prediction) {
    testing::TestEngine engine(config_, executor_, drafter);
    const RequestId id =
        engine.Submit(Tokens{1}, params, {}, {.prediction = Predict(std::move(prediction))});
    return RunToEnd(engine).at(id);
  }
};

TEST_F(PredictionTest, IsDraftedWithoutADrafter) {
  const Finished plain = Run(nullptr, Greedy(40), {});
  EXPECT_EQ(plain.metrics.num_target_passes, 40);
  const Finished result = Run(nullptr, Greedy(40), CountAfter(1, 40));
  EXPECT_EQ(result.tokens, plain.tokens);
  // The prompt's pass emits one token, the first draft is limited by the rows of a step.
  EXPECT_EQ(result.metrics.num_target_passes, 3);
  EXPECT_EQ(result.metrics.num_accepted_prediction_tokens, 37);
  EXPECT_EQ(result.metrics.num_rejected_prediction_tokens, 0);
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens, 37);
}

TEST_F(PredictionTest, AWrongOneChangesNoTokenAndCountsAsRejected) {
  const Finished result = Run(nullptr, Greedy(6), {2, 9, 9, 9, 9});
  EXPECT_EQ(result.tokens, CountAfter(1, 6));
  EXPECT_EQ(result.metrics.num_target_passes, 6);
  EXPECT_EQ(result.metrics.num_accepted_prediction_tokens, 0);
  EXPECT_EQ(result.metrics.num_rejected_prediction_tokens, 4);  // once: a 9 does not come again
}

TEST_F(PredictionTest, AnEditIsDraftedAgainAfterIt) {
  Tokens prediction = CountAfter(1, 40);
  prediction.insert(prediction.begin() + 12, {15, 15, 15});
  const Finished result = Run(nullptr, Greedy(40), prediction);
  EXPECT_EQ(result.tokens, CountAfter(1, 40));
  EXPECT_GE(result.metrics.num_accepted_prediction_tokens, 34);
  EXPECT_LE(result.metrics.num_target_passes, 6);
}

TEST_F(PredictionTest, ComesBeforeTheDrafter) {
  config_.num_speculative_tokens = 4;
  ScriptedDrafter drafter(WrongToken);
  const Finished result = Run(&drafter, Greedy(30), CountAfter(1, 30));
  EXPECT_EQ(result.tokens, CountAfter(1, 30));
  EXPECT_EQ(result.metrics.num_target_passes, 2);
  EXPECT_EQ(drafter.max_proposed(), 0);
  EXPECT_EQ(drafter.num_live(), 0u);
}

TEST_F(PredictionTest, TheDrafterDraftsWhereItHasNothing) {
  config_.num_speculative_tokens = 4;
  ScriptedDrafter drafter(RightToken);
  const Finished result = Run(&drafter, Greedy(14), CountAfter(1, 6));
  EXPECT_EQ(result.tokens, CountAfter(1, 14));
  // 1 + (5 + 1) by the prediction, then 5 tokens a pass, of which one is not drafted.
  EXPECT_EQ(result.metrics.num_target_passes, 2 + 2);
  EXPECT_EQ(result.metrics.num_accepted_prediction_tokens, 5);
  EXPECT_EQ(drafter.max_proposed(), 4);
}

TEST_F(PredictionTest, CountsLongDraftsOfADrafterAndAGrammar) {
  config_.num_speculative_tokens = 2;
  config_.adaptive = false;
  ScriptedDrafter drafter(RightToken, [](int) { return std::vector<std::int32_t>{kDraftRoot}; });
  testing::TestEngine engine(config_, executor_, &drafter);
  RequestHooks hooks;
  hooks.constraint = std::make_unique<testing::ToyConstraint>(
      testing::ToyGrammar::Exactly(CountAfter(1, 30), kVocabSize));
  // The output begins in another way; where its second token is found, the drafter is called.
  Tokens prediction = CountAfter(2, 30);
  prediction.insert(prediction.begin(), 15);
  engine.Submit(Tokens{1}, Greedy(30), std::move(hooks), {.prediction = Predict(prediction)});
  EXPECT_EQ(RunToEnd(engine).begin()->second.tokens, CountAfter(1, 30));
  const SpecDecodeCounters counters = engine.metrics().spec_decode;
  EXPECT_GT(counters.num_draft_tokens_per_pos.size(), 20u);
  EXPECT_EQ(std::accumulate(counters.num_draft_tokens_per_pos.begin(),
                            counters.num_draft_tokens_per_pos.end(), std::int64_t{0}),
            counters.num_draft_tokens);
}

TEST_F(PredictionTest, DraftsAfterAShortMatchWhereTheDrafterHasNothing) {
  config_.num_speculative_tokens = 4;
  ScriptedDrafter drafter(RightToken, [](int) { return std::vector<std::int32_t>(); });
  // The output begins in another way; its second token is found.
  Tokens prediction = CountAfter(2, 12);
  prediction.insert(prediction.begin(), 15);
  const Finished result = Run(&drafter, Greedy(12), prediction);
  EXPECT_EQ(result.tokens, CountAfter(1, 12));
  EXPECT_EQ(result.metrics.num_target_passes, 3);
  EXPECT_EQ(drafter.max_proposed(), 4) << "the drafter was called first";
}

TEST_F(PredictionTest, SurvivesAFailureOfTheDrafter) {
  config_.num_speculative_tokens = 4;
  ScriptedDrafter drafter(RightToken);
  drafter.ThrowAfter(0);
  const Finished result = Run(&drafter, Greedy(30), CountAfter(1, 30));
  EXPECT_EQ(result.tokens, CountAfter(1, 30));
  EXPECT_EQ(result.metrics.num_target_passes, 2);
}

TEST_F(PredictionTest, RequestsCanDisableOrLimitDrafts) {
  SamplingParams off = Greedy(8);
  off.speculative = false;
  EXPECT_EQ(Run(nullptr, off, CountAfter(1, 8)).metrics.num_target_passes, 8);
  SamplingParams capped = Greedy(9);
  capped.max_draft_tokens = 3;
  const Finished result = Run(nullptr, capped, CountAfter(1, 9));
  EXPECT_EQ(result.tokens, CountAfter(1, 9));
  EXPECT_EQ(result.metrics.num_target_passes, 3);
  capped.max_draft_tokens = 0;
  EXPECT_EQ(Run(nullptr, capped, CountAfter(1, 9)).metrics.num_target_passes, 9);
}

TEST_F(PredictionTest, RequestsShareTheRowsOfAStep) {
  config_.max_num_batched_tokens = 64;
  testing::TestEngine engine(config_, executor_, nullptr);
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(
        engine.Submit(Tokens{1}, Greedy(30), {}, {.prediction = Predict(CountAfter(1, 30))}));
  }
  const auto results = RunToEnd(engine);
  for (const RequestId id : ids) {
    EXPECT_EQ(results.at(id).tokens, CountAfter(1, 30));
    const auto& drafted = results.at(id).metrics.spec_decode.num_draft_tokens_per_pos;
    ASSERT_EQ(std::ssize(drafted), kPredictedTokens);
    EXPECT_GT(drafted[kPredictedTokens / 4 - 1], 0);
    EXPECT_EQ(drafted[kPredictedTokens / 4], 0);
  }
}

TEST_F(PredictionTest, RequestsMayShareOneWhichTheLastToEndDrops) {
  config_.max_num_batched_tokens = 64;
  testing::TestEngine engine(config_, executor_, nullptr);
  auto prediction = Predict(CountAfter(1, 30));
  const std::weak_ptr<const Prediction> watched = prediction;
  const RequestId first = engine.Submit(Tokens{1}, Greedy(30), {}, {.prediction = prediction});
  const RequestId second =
      engine.Submit(Tokens{1, 2, 3}, Greedy(20), {}, {.prediction = prediction});
  SamplingParams off = Greedy(3);
  off.speculative = false;
  engine.Submit(Tokens{1}, off, {}, {.prediction = prediction});
  EXPECT_EQ(prediction.use_count(), 3) << "a copy costs as much as the text";
  prediction.reset();
  engine.Step();
  EXPECT_TRUE(engine.Cancel(first));
  const auto results = RunToEnd(engine);
  EXPECT_EQ(results.at(second).tokens, CountAfter(4, 19));  // after those of the first step
  EXPECT_GT(results.at(second).metrics.num_accepted_prediction_tokens, 10);
  engine.Step();  // lets go of what the last one has finished
  EXPECT_TRUE(watched.expired());
}

TEST_F(PredictionTest, NeedsNoMoreRowsOfLogitsThanScoredPrompts) {
  config_.max_model_len = 512;
  config_.max_num_batched_tokens = 1024;
  config_.num_blocks = 1024;
  ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size, CountingLogits);
  testing::TestEngine engine(config_, executor, nullptr);
  EXPECT_EQ(config_.max_logits_rows(), 256 + 2 * config_.max_num_seqs);
  engine.Submit(Tokens{1}, Greedy(100), {}, {.prediction = Predict(CountAfter(1, 100))});
  engine.Step();
  SamplingParams scored = Greedy(2);
  scored.prompt_logprobs = 0;
  for (int i = 0; i < 3; ++i) engine.Submit(CountAfter(1, 400), scored);
  const auto results = RunToEnd(engine);
  EXPECT_EQ(results.at(0).tokens, CountAfter(2, 99));
  EXPECT_GT(executor.max_logits_rows_seen(), 224 + kPredictedTokens);
  EXPECT_LE(executor.max_logits_rows_seen(), config_.max_logits_rows());
}

TEST_F(PredictionTest, ACountOfTokensIsPartOfTheEnginesCounters) {
  testing::TestEngine engine(config_, executor_, nullptr);
  EXPECT_TRUE(engine.metrics().spec_decode.num_draft_tokens_per_pos.empty());
  engine.Submit(Tokens{1}, Greedy(20), {}, {.prediction = Predict(CountAfter(1, 20))});
  RunToEnd(engine);
  const SpecDecodeCounters counters = engine.metrics().spec_decode;
  EXPECT_EQ(counters.num_accepted_tokens, 18);
  EXPECT_EQ(counters.num_draft_tokens_per_pos, std::vector<std::int64_t>(18, 1));
  EXPECT_EQ(counters.num_accepted_tokens_per_pos, std::vector<std::int64_t>(18, 1));
}

TEST_F(PredictionTest, IsCheckedLikeAPrompt) {
  testing::TestEngine engine(config_, executor_, nullptr);
  const auto error_of = [&](Tokens prediction) {
    try {
      engine.Submit(Tokens{1}, Greedy(2), {}, {.prediction = Predict(std::move(prediction))});
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(error_of({1, 2, kVocabSize}).find("prediction[2]"), std::string::npos);
  EXPECT_NE(error_of({-1}).find("prediction[0]"), std::string::npos);
  EXPECT_NE(error_of(Tokens(config_.max_model_len + 1, 1)).find("65 tokens"), std::string::npos);
  EXPECT_EQ(error_of(Tokens(config_.max_model_len, 1)), "");
  EXPECT_EQ(RunToEnd(engine).size(), 1u);
}

// What another request predicts must not be drafted: from a text that two requests share, one can
// tell from the time that the other takes what the other's user predicts.
TEST_F(PredictionTest, IsNotDraftedForOtherRequests) {
  config_.num_speculative_tokens = 8;
  SuffixDrafter drafter{SuffixOptions()};
  testing::TestEngine engine(config_, executor_, &drafter);
  // Its own output is short, so that others can learn nothing else from it.
  engine.Submit(Tokens{1}, Greedy(1), {}, {.prediction = Predict(CountAfter(1, 60))});
  RunToEnd(engine);
  engine.Submit(Tokens{1}, Greedy(2), {}, {.prediction = Predict(CountAfter(1, 60))});
  const RequestId beside = engine.Submit(Tokens{2}, Greedy(10));
  EXPECT_EQ(RunToEnd(engine).at(beside).metrics.spec_decode.num_draft_tokens, 0);
  const RequestId after = engine.Submit(Tokens{2}, Greedy(10));
  EXPECT_EQ(RunToEnd(engine).at(after).metrics.num_accepted_prediction_tokens, 0);
}

// Every request's prediction has marks of its own, which the model never writes: a row that
// computes one shows for whom it was drafted. Requests follow each other and overlap, over a
// drafter that learns from outputs of all of them.
TEST(PredictionOwnerTest, NoRequestDraftsThePredictionOfAnother) {
  constexpr int kNumRequests = 12, kFirstMark = 40, kFirstPrompt = 20;
  EngineConfig config = testing::SmallConfig();
  config.num_speculative_tokens = 8;
  std::vector<int> num_own(kNumRequests);
  // Prompts begin with a token that names the request.
  const auto logits_of = [&](std::span<const TokenId> prefix) {
    const int owner = prefix.front() - kFirstPrompt;
    for (const TokenId token : prefix) {
      if (token < kFirstMark) continue;
      EXPECT_EQ(token - kFirstMark, owner);
      ++num_own[owner];
    }
    std::vector<float> logits(kFirstMark + kNumRequests, 0.0f);
    logits[prefix.back() >= kFirstPrompt ? 2 : Successor(prefix.back())] = 9.0f;
    return logits;
  };
  ScriptedExecutor executor(kFirstMark + kNumRequests, config.num_blocks, config.block_size,
                            logits_of);
  SuffixOptions options;
  options.use_tree = true;
  SuffixDrafter drafter(options);
  testing::TestEngine engine(config, executor, &drafter);
  for (int i = 0; i < kNumRequests; ++i) {
    Tokens prediction = CountAfter(1, 20);
    for (const int at : {3, 9, 10, 15}) prediction[at] = kFirstMark + i;
    engine.Submit(Tokens{kFirstPrompt + i}, Greedy(20), {}, {.prediction = Predict(prediction)});
    if (i % 3 == 0) engine.Step();
  }
  const auto results = RunToEnd(engine);
  for (const auto& [id, result] : results) {
    EXPECT_EQ(result.metrics.num_generated_tokens, 20);
    EXPECT_GT(result.metrics.num_accepted_prediction_tokens, 0);
  }
  for (const int count : num_own) EXPECT_GT(count, 0);
}

// Random predictions, drafters, limits and ends: the tokens are those without speculation.
TEST(PredictionLosslessTest, NoTokenDependsOnPredictions) {
  std::mt19937 random(3);
  const int num_examples = testing::NumExamples(60, 3'000);
  for (int example = 0; example < num_examples; ++example) {
    EngineConfig config = testing::SmallConfig();
    config.num_speculative_tokens = static_cast<int>(random() % 6);
    config.adaptive = random() % 2 == 0;
    config.num_blocks = 16 + static_cast<int>(random() % 20);  // may preempt
    config.acceptance_method = AcceptanceMethod::kCoupled;
    ScriptedExecutor executor(kVocabSize, config.num_blocks, config.block_size, CountingLogits);
    ScriptedDrafter drafter([&](auto) { return static_cast<TokenId>(random() % kVocabSize); });
    const bool has_drafter = config.num_speculative_tokens > 0 && random() % 2 == 0;
    testing::TestEngine engine(config, executor, has_drafter ? &drafter : nullptr);
    testing::TestEngine plain(config, executor, nullptr);
    std::vector<std::pair<RequestId, RequestId>> pairs;
    for (int i = 0; i < 6; ++i) {
      SamplingParams params = Greedy(1 + static_cast<int>(random() % 40));
      params.temperature = random() % 2 == 0 ? 0.0 : 2.5;
      params.seed = random();
      if (random() % 4 == 0) params.max_draft_tokens = static_cast<int>(random() % 9);
      if (random() % 4 == 0) params.repetition_penalty = 1.5;
      if (random() % 4 == 0) params.stop_token_ids = {static_cast<TokenId>(random() % kVocabSize)};
      const Tokens prompt(1 + random() % 12, 1);
      Tokens prediction = CountAfter(1, 1 + static_cast<int>(random() % 50));
      for (TokenId& token : prediction) {
        if (random() % 10 == 0) token = static_cast<TokenId>(random() % kVocabSize);
      }
      const RequestId expected = plain.Submit(prompt, params);
      pairs.emplace_back(expected,
                         engine.Submit(prompt, params, {}, {.prediction = Predict(prediction)}));
    }
    auto expected = RunToEnd(plain);
    auto results = RunToEnd(engine);
    for (const auto& [without, with] : pairs) {
      ASSERT_EQ(results[with].tokens, expected[without].tokens);
      ASSERT_EQ(results[with].last.finish_reason, expected[without].last.finish_reason);
    }
  }
}

}  // namespace
}  // namespace forerun
