// The engine's behaviour in edge cases, over a scripted model and scripted drafters.
#include "cpp/engine/engine_core.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <thread>

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
using testing::Successor;
using testing::WrongToken;

using EngineCoreTest = CountingEngineTest;

TEST_F(EngineCoreTest, ARightDrafterNeedsOnePassPerDraftAndBonus) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  const RequestId id = engine.Submit(std::vector<TokenId>{1, 2}, Greedy(11));
  const Finished result = RunToEnd(engine).at(id);
  EXPECT_EQ(result.tokens, (std::vector<TokenId>{3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}));
  // The prompt's pass emits one token, two passes with four drafts each emit five.
  EXPECT_EQ(result.metrics.num_target_passes, 3);
  EXPECT_EQ(result.metrics.spec_decode.num_drafts, 2);
  EXPECT_EQ(result.metrics.spec_decode.num_draft_tokens, 8);
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens, 8);
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens_per_pos,
            (std::vector<std::int64_t>{2, 2, 2, 2}));
  EXPECT_EQ(drafter.num_ended(), 1);
  EXPECT_EQ(drafter.num_live(), 0u);
}

TEST_F(EngineCoreTest, AWrongDrafterChangesNoTokenAndNothingCountsAsAccepted) {
  ScriptedDrafter drafter(WrongToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  const RequestId id = engine.Submit(std::vector<TokenId>{1}, Greedy(6));
  const Finished result = RunToEnd(engine).at(id);
  EXPECT_EQ(result.tokens, (std::vector<TokenId>{2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(result.metrics.num_target_passes, 6);
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens, 0);
}

TEST_F(EngineCoreTest, DraftsNeverReachBeyondMaxTokensOrTheModelsLength) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  const RequestId two = engine.Submit(std::vector<TokenId>{1}, Greedy(3));
  EXPECT_EQ(RunToEnd(engine).at(two).tokens.size(), 3u);
  EXPECT_EQ(drafter.max_proposed(), 1);

  const RequestId full = engine.Submit(std::vector<TokenId>(60, 1), Greedy(100));
  const Finished result = RunToEnd(engine).at(full);
  EXPECT_EQ(result.tokens.size(), 4u);
  EXPECT_EQ(result.last.finish_reason, FinishReason::kLength);
}

TEST_F(EngineCoreTest, AStopInsideAnAcceptedDraftCutsIdsTextAndUsageAtTheSameToken) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  std::vector<std::string> bytes(kVocabSize);
  for (int token = 0; token < kVocabSize; ++token) bytes[token] = std::string(1, 'a' + token);
  engine.SetTokenBytes(bytes);
  SamplingParams params = Greedy(30);
  params.stop = {"zz", "fg"};
  const RequestId by_string = engine.Submit(std::vector<TokenId>{1}, params);
  params.stop.clear();
  params.stop_token_ids = {6};
  const RequestId by_token = engine.Submit(std::vector<TokenId>{1}, params);
  const auto results = RunToEnd(engine);

  EXPECT_EQ(results.at(by_string).tokens, (std::vector<TokenId>{2, 3, 4, 5, 6}));
  EXPECT_EQ(results.at(by_string).last.stop_string_index, 1);
  EXPECT_EQ(results.at(by_string).last.num_text_bytes, 3);  // "cde"
  EXPECT_EQ(results.at(by_string).metrics.num_generated_tokens, 5);
  EXPECT_EQ(results.at(by_string).metrics.spec_decode.num_accepted_tokens, 4);

  EXPECT_EQ(results.at(by_token).tokens, (std::vector<TokenId>{2, 3, 4, 5, 6}));
  EXPECT_EQ(results.at(by_token).last.stop_token, 6);
  EXPECT_EQ(results.at(by_token).last.num_text_bytes, 4);  // "cdef"
}

TEST_F(EngineCoreTest, RequestsCanDisableOrLimitDrafts) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  SamplingParams off = Greedy(8);
  off.speculative = false;
  SamplingParams capped = Greedy(8);
  capped.max_draft_tokens = 2;
  const RequestId plain = engine.Submit(std::vector<TokenId>{1}, off);
  const RequestId short_drafts = engine.Submit(std::vector<TokenId>{1}, capped);
  const auto results = RunToEnd(engine);
  EXPECT_EQ(results.at(plain).metrics.spec_decode.num_drafts, 0);
  EXPECT_EQ(results.at(plain).metrics.num_target_passes, 8);
  EXPECT_EQ(results.at(short_drafts).metrics.spec_decode.num_accepted_tokens_per_pos,
            (std::vector<std::int64_t>{2, 2, 0, 0}));
  EXPECT_EQ(results.at(plain).tokens, results.at(short_drafts).tokens);
}

TEST_F(EngineCoreTest, APromptSeenBeforeComesFromThePrefixCache) {
  testing::TestEngine engine = MakeEngine();
  const std::vector<TokenId> prompt{1, 2, 3, 4, 5, 6, 7, 8, 9};
  const RequestId first = engine.Submit(prompt, Greedy(2));
  EXPECT_EQ(RunToEnd(engine).at(first).last.num_cached_tokens, 0);
  const RequestId again = engine.Submit(prompt, Greedy(2));
  EXPECT_EQ(RunToEnd(engine).at(again).last.num_cached_tokens, 8);
  EXPECT_EQ(engine.metrics().num_cached_prompt_tokens, 8);
  EXPECT_EQ(engine.metrics().num_prompt_tokens, 9 + 1);
  engine.ResetCaches();
  const RequestId after = engine.Submit(prompt, Greedy(2));
  EXPECT_EQ(RunToEnd(engine).at(after).last.num_cached_tokens, 0);
}

TEST_F(EngineCoreTest, ACommonPrefixOfPromptsIsComputedOnce) {
  testing::TestEngine engine = MakeEngine();
  const std::vector<TokenId> prompt{1, 2, 3, 4, 5, 6, 7, 8, 9};
  for (int i = 0; i < 4; ++i) engine.Submit(prompt, Greedy(2));
  const auto results = RunToEnd(engine);
  for (RequestId id = 1; id < 4; ++id) EXPECT_EQ(results.at(id).last.num_cached_tokens, 8);
  EXPECT_EQ(engine.metrics().num_prompt_tokens, 9 + 3);
}

TEST_F(EngineCoreTest, AShortageOfBlocksPreemptsAndChangesNoToken) {
  config_.num_blocks = 16;  // exactly one request of full length
  testing::TestEngine engine = MakeEngine();
  std::vector<RequestId> ids;
  for (TokenId i = 1; i <= 4; ++i) {
    ids.push_back(engine.Submit(std::vector<TokenId>{i, i, i}, Greedy(40)));
  }
  const auto results = RunToEnd(engine);
  for (RequestId id : ids) {
    ASSERT_EQ(results.at(id).tokens.size(), 40u);
    EXPECT_EQ(results.at(id).tokens[0], Successor(static_cast<TokenId>(id) + 1));
  }
  EXPECT_GT(engine.metrics().num_preemptions, 0);
}

TEST_F(EngineCoreTest, CancelledRequestsEndWithAnAbortAndFreeTheirBlocks) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  const RequestId kept = engine.Submit(std::vector<TokenId>{1}, Greedy(9));
  const RequestId dropped = engine.Submit(std::vector<TokenId>{1}, Greedy(50));
  engine.Step();
  EXPECT_TRUE(engine.Cancel(dropped));
  const auto results = RunToEnd(engine);
  EXPECT_EQ(results.at(dropped).last.finish_reason, FinishReason::kAbort);
  EXPECT_EQ(results.at(kept).last.finish_reason, FinishReason::kLength);
  EXPECT_FALSE(engine.Cancel(dropped));
  EXPECT_FALSE(engine.Cancel(999));
  EXPECT_EQ(drafter.num_forgotten(), 1);
  EXPECT_EQ(engine.metrics().num_held_blocks, 0);
}

TEST_F(EngineCoreTest, LogitsThatAreNotFiniteFailTheirRequestAlone) {
  ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size, [](auto prefix) {
    std::vector<float> logits = CountingLogits(prefix);
    if (prefix[0] == 7 && prefix.size() > 4) logits[3] = std::nanf("");
    return logits;
  });
  testing::TestEngine engine(config_, executor, nullptr);
  const RequestId good = engine.Submit(std::vector<TokenId>{1}, Greedy(10));
  const RequestId bad = engine.Submit(std::vector<TokenId>{7}, Greedy(10));
  const auto results = RunToEnd(engine);
  EXPECT_EQ(results.at(good).tokens.size(), 10u);
  EXPECT_EQ(results.at(bad).last.finish_reason, FinishReason::kError);
  EXPECT_EQ(results.at(bad).tokens.size(), 4u);
  EXPECT_NE(results.at(bad).error.find("nan"), std::string::npos) << results.at(bad).error;
}

TEST_F(EngineCoreTest, AStepThatFailsChangesNothing) {
  ScriptedDrafter drafter(RightToken);
  for (int failing_call = 0; failing_call < 4; ++failing_call) {
    ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size, CountingLogits);
    testing::TestEngine engine(config_, executor, &drafter);
    engine.Submit(std::vector<TokenId>{1, 2, 3}, Greedy(12));
    executor.FailAfter(failing_call);
    std::vector<TokenId> tokens;
    int num_failures = 0;
    while (engine.HasUnfinished()) {
      try {
        for (const RequestUpdate& update : engine.Step()) {
          tokens.insert(tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
        }
      } catch (const std::runtime_error&) {
        ++num_failures;
      }
    }
    EXPECT_EQ(num_failures, 1);
    EXPECT_EQ(tokens, (std::vector<TokenId>{4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}));
  }
}

TEST_F(EngineCoreTest, ADrafterThatThrowsChangesNoTokenAndIsCounted) {
  for (int call = 0; call < 6; ++call) {
    ScriptedDrafter drafter(RightToken);
    testing::TestEngine engine(config_, executor_, &drafter);
    const RequestId first = engine.Submit(std::vector<TokenId>{1}, Greedy(12));
    const RequestId second = engine.Submit(std::vector<TokenId>{5}, Greedy(12));
    drafter.ThrowAfter(call);
    const auto results = RunToEnd(engine);
    EXPECT_EQ(results.at(first).tokens.size(), 12u);
    EXPECT_EQ(results.at(second).tokens.size(), 12u);
    EXPECT_EQ(engine.metrics().num_drafting_failures, 1);
    EXPECT_EQ(engine.metrics().first_drafting_failure, "scripted failure");
    EXPECT_EQ(drafter.num_live(), 0u);
  }
}

TEST_F(EngineCoreTest, RequestsThatCanNeverBeServedAreRefusedWithNumbers) {
  testing::TestEngine engine = MakeEngine();
  const auto field_of = [&](std::vector<TokenId> prompt, const SamplingParams& params) {
    try {
      engine.Submit(prompt, params);
    } catch (const InvalidArgument& error) {
      return error.field();
    }
    return std::string("accepted");
  };
  EXPECT_EQ(field_of({}, Greedy(1)), "prompt");
  EXPECT_EQ(field_of({1, kVocabSize}, Greedy(1)), "prompt[1]");
  EXPECT_EQ(field_of({-1}, Greedy(1)), "prompt[0]");
  EXPECT_EQ(field_of(std::vector<TokenId>(64, 1), Greedy(1)), "prompt");
  EXPECT_EQ(field_of({1}, Greedy(0)), "max_tokens");
  SamplingParams params = Greedy(1);
  params.stop_token_ids = {99};
  EXPECT_EQ(field_of({1}, params), "stop_token_ids");
  params = Greedy(1);
  params.stop = {"x"};
  EXPECT_EQ(field_of({1}, params), "stop");
  const auto field_with = [&](const std::function<void(SamplingParams&)>& change) {
    SamplingParams changed = Greedy(1);
    change(changed);
    return field_of({1}, changed);
  };
  using P = SamplingParams;
  EXPECT_EQ(field_with([](P& p) { p.allowed_token_ids = {{kVocabSize}}; }), "allowed_token_ids");
  EXPECT_EQ(field_with([](P& p) { p.bad_words = {{1, kVocabSize}}; }), "bad_words");
  EXPECT_EQ(field_with([](P& p) { p.logit_bias = {{kVocabSize, 1.0}}; }), "logit_bias");
  EXPECT_EQ(field_with([](P& p) { p.logprobs = kVocabSize + 1; }), "logprobs");
  EXPECT_EQ(field_with([](P& p) { p.prompt_logprobs = kVocabSize + 1; }), "prompt_logprobs");
  EXPECT_FALSE(engine.HasUnfinished());
  EXPECT_EQ(field_of({1}, Greedy(1)), "accepted");
}

TEST_F(EngineCoreTest, SubmitAndCancelMayComeFromOtherThreads) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  constexpr int kNumThreads = 3;
  constexpr int kNumRequests = 40;
  std::vector<std::thread> threads;
  std::atomic<int> num_live_threads{kNumThreads};
  for (int thread = 0; thread < kNumThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < kNumRequests; ++i) {
        const RequestId id = engine.Submit(std::vector<TokenId>{1 + (i + thread) % 9}, Greedy(7));
        if (i % 5 == 0) engine.Cancel(id);
        engine.metrics();
      }
      --num_live_threads;
    });
  }
  int num_finished = 0;
  while (num_live_threads > 0 || engine.HasUnfinished()) {
    for (const RequestUpdate& update : engine.Step()) {
      num_finished += update.finish_reason != FinishReason::kNone;
    }
  }
  for (std::thread& thread : threads) thread.join();
  while (engine.HasUnfinished()) engine.Step();
  EXPECT_EQ(num_finished, kNumThreads * kNumRequests);
}

}  // namespace
}  // namespace forerun
