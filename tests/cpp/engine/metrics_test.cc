// The exact values of the counters, over a scripted model and scripted drafters.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/metrics_account.h"
#include "tests/cpp/testing/scripted_drafter.h"

namespace forerun {
namespace {

using testing::CountingLogits;
using testing::Finished;
using testing::Greedy;
using testing::kVocabSize;
using testing::MetricsAccount;
using testing::RightToken;
using testing::RunToEnd;
using testing::ScriptedDrafter;
using testing::ScriptedExecutor;
using testing::Successor;
using Counts = std::vector<std::int64_t>;

using MetricsTest = testing::CountingEngineTest;

std::vector<double> Bounds(const Histogram& histogram) {
  return {histogram.bounds.begin(), histogram.bounds.end()};
}

TEST_F(MetricsTest, DraftsThatNeverReachedAPositionAreNotCountedThere) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  SamplingParams params = Greedy(8);
  params.max_draft_tokens = 2;
  engine.Submit(std::vector<TokenId>{1}, params);     // drafts of 2, 2 and 1: 1 + 3 + 3 + 1 tokens
  engine.Submit(std::vector<TokenId>{1}, Greedy(9));  // drafts of 4 and 2: 1 + 5 + 3 tokens
  const auto results = RunToEnd(engine);
  const SpecDecodeCounters& capped = results.at(0).metrics.spec_decode;
  EXPECT_EQ(capped.num_draft_tokens_per_pos, (Counts{2, 2, 0, 0}));
  const SpecDecodeCounters& free = results.at(1).metrics.spec_decode;
  EXPECT_EQ(free.num_draft_tokens_per_pos, (Counts{2, 2, 1, 1}));
  const SpecDecodeCounters all = engine.metrics().spec_decode;
  EXPECT_EQ(all.num_drafts, 4);
  EXPECT_EQ(all.num_draft_tokens_per_pos, (Counts{4, 4, 1, 1}));
  EXPECT_EQ(all.num_accepted_tokens_per_pos, (Counts{4, 4, 1, 1}));
  EXPECT_EQ(all.num_draft_tokens, 4 + 4 + 1 + 1);
}

TEST_F(MetricsTest, ShortenedDraftsKeepTheRateOfThePositionsTheyHave) {
  // Right for two tokens, then wrong: drafts of one token are always right.
  const auto next_token = [](std::span<const TokenId> text) {
    return text.size() % 3 == 0 ? TokenId{0} : Successor(text.back());
  };
  ScriptedDrafter drafter(next_token);
  testing::TestEngine engine(config_, executor_, &drafter);
  SamplingParams one = Greedy(12);
  one.max_draft_tokens = 1;
  const RequestId id = engine.Submit(std::vector<TokenId>{1, 2}, one);
  const SpecDecodeCounters shortened = RunToEnd(engine).at(id).metrics.spec_decode;
  EXPECT_EQ(shortened.num_draft_tokens_per_pos, (Counts{shortened.num_drafts, 0, 0, 0}));
  EXPECT_EQ(shortened.num_draft_tokens, shortened.num_drafts);
}

TEST_F(MetricsTest, ATreeCountsThePositionsUpToItsDepth) {
  config_.num_speculative_tokens = 6;
  const std::vector<std::int32_t> parents = {-1, -1, 0, 1, 3, 1};
  const auto shape = [&](int max_nodes) {
    return std::vector<std::int32_t>(parents.begin(), parents.begin() + std::min(6, max_nodes));
  };
  ScriptedDrafter drafter(testing::WrongToken, shape);
  testing::TestEngine engine(config_, executor_, &drafter);
  const RequestId id = engine.Submit(std::vector<TokenId>{1}, Greedy(8));
  const SpecDecodeCounters counters = RunToEnd(engine).at(id).metrics.spec_decode;
  // With 7 to 2 tokens left there are 6, 5, 4, 3, 2 and 1 nodes.
  EXPECT_EQ(counters.num_draft_tokens, 6 + 5 + 4 + 3 + 2 + 1);
  EXPECT_EQ(counters.num_draft_tokens_per_pos, (Counts{6, 4, 2, 0, 0, 0}));
  EXPECT_EQ(counters.num_accepted_tokens, 0);
}

TEST_F(MetricsTest, AStopInsideAnAcceptedDraftCutsTheCountersToo) {
  config_.record_draft_steps = true;
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  SamplingParams params = Greedy(30);
  params.stop_token_ids = {9};
  const RequestId id = engine.Submit(std::vector<TokenId>{1}, params);
  const Finished result = RunToEnd(engine).at(id);
  EXPECT_EQ(result.tokens, (std::vector<TokenId>{2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(result.metrics.spec_decode.num_draft_tokens_per_pos, (Counts{2, 2, 2, 2}));
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens_per_pos, (Counts{2, 2, 1, 1}));
  ASSERT_EQ(result.metrics.draft_steps.size(), 2u);
  EXPECT_EQ(result.metrics.draft_steps[0].num_accepted_tokens, 4);
  EXPECT_EQ(result.metrics.draft_steps[1].num_draft_tokens, 4);
  EXPECT_EQ(result.metrics.draft_steps[1].num_accepted_tokens, 2);
  const EngineMetrics metrics = engine.metrics();
  testing::ExpectValues(metrics.histograms.request_generation_tokens, {8});
  EXPECT_EQ(metrics.histograms.inter_token_latency_seconds.count, 2) << "one a step";
}

TEST_F(MetricsTest, DraftStepsAreRecordedOnlyOnRequest) {
  ScriptedDrafter drafter(RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  const RequestId id = engine.Submit(std::vector<TokenId>{1}, Greedy(12));
  EXPECT_TRUE(RunToEnd(engine).at(id).metrics.draft_steps.empty());
}

TEST_F(MetricsTest, BoundsAreInclusiveAndEndBeforeTheModelsLength) {
  testing::TestEngine engine = MakeEngine();
  for (int length : {1, 2, 5, 6, 50, 51}) {
    engine.Submit(std::vector<TokenId>(length, 1), Greedy(1));
  }
  RunToEnd(engine);
  const EngineHistograms all = engine.metrics().histograms;
  EXPECT_EQ(Bounds(all.request_prompt_tokens), (std::vector<double>{1, 2, 5, 10, 20, 50}));
  EXPECT_EQ(Counts(all.request_prompt_tokens.counts.begin(),
                   all.request_prompt_tokens.counts.begin() + 7),
            (Counts{1, 1, 1, 1, 0, 1, 1}));
  EXPECT_EQ(all.request_prompt_tokens.sum, 1 + 2 + 5 + 6 + 50 + 51);
  testing::ExpectValues(all.request_params_max_tokens, {1, 1, 1, 1, 1, 1});
}

TEST_F(MetricsTest, APromptIsCountedOnceHoweverOftenItIsComputed) {
  config_.num_blocks = 16;  // exactly one request of full length
  config_.enable_prefix_caching = false;
  testing::TestEngine engine = MakeEngine();
  std::int64_t num_preemptions = 0;
  for (TokenId i = 1; i <= 4; ++i) engine.Submit(std::vector<TokenId>{i, i, i}, Greedy(40));
  for (const auto& [id, result] : RunToEnd(engine))
    num_preemptions += result.metrics.num_preemptions;
  const EngineMetrics metrics = engine.metrics();
  EXPECT_GT(num_preemptions, 0);
  EXPECT_EQ(metrics.num_preemptions, num_preemptions);
  EXPECT_GT(metrics.num_prompt_tokens, 4 * 3) << "some were computed again";
  EXPECT_EQ(metrics.num_prefilled_tokens, 4 * 3);
  EXPECT_EQ(metrics.num_prefix_cache_queries, 0) << "there is no cache";
  EXPECT_EQ(metrics.histograms.iteration_tokens_total.sum, metrics.num_prompt_tokens + 4 * 40);
  EXPECT_EQ(metrics.histograms.iteration_tokens_total.count, metrics.num_steps);
}

TEST_F(MetricsTest, APromptCachedByOthersWhileItsRequestWaitedIsCountedAsCached) {
  config_.num_blocks = 16;
  config_.max_num_batched_tokens = 8;
  config_.scheduling_policy = SchedulingPolicy::kPriority;
  testing::TestEngine engine = MakeEngine();
  std::vector<TokenId> prompt(40);
  for (int i = 0; i < 40; ++i) prompt[i] = i % 7 + 1;
  engine.Submit(std::vector<TokenId>(21, 9), Greedy(20), {}, {.priority = 0});
  engine.Submit(prompt, Greedy(2), {}, {.priority = 2});
  while (engine.metrics().num_preemptions == 0) engine.Step();
  EXPECT_EQ(engine.metrics().num_prefilled_tokens, 21) << "preempted before its first token";
  engine.Submit(prompt, Greedy(2), {}, {.priority = 1});
  RunToEnd(engine);
  const EngineMetrics metrics = engine.metrics();
  EXPECT_EQ(metrics.num_preemptions, 1);
  EXPECT_EQ(metrics.num_prefilled_tokens, 21 + 40 + 40);
  EXPECT_GT(metrics.num_prefilled_from_cache, 40 / 2);
  EXPECT_EQ(metrics.num_prompt_tokens + metrics.num_prefilled_from_cache, 21 + 40 + 40);
}

TEST_F(MetricsTest, PreemptionsOfAFailedStepAreCounted) {
  config_.num_blocks = 16;
  testing::TestEngine engine = MakeEngine();
  MetricsAccount account;
  for (TokenId i = 1; i <= 4; ++i) {
    account.Submitted(engine.Submit(std::vector<TokenId>{i, i, i}, Greedy(40)), 3, 40);
  }
  // Every step fails once, after it was planned.
  while (engine.HasUnfinished()) {
    executor_.FailAfter(0);
    EXPECT_THROW(engine.Step(), std::runtime_error);
    for (const RequestUpdate& update : engine.Step()) account.Add(update);
  }
  EXPECT_GT(engine.metrics().num_preemptions, 0);
  account.ExpectEqual(engine.metrics());
}

TEST_F(MetricsTest, QueriesOfThePrefixCacheAreHitsAndMisses) {
  testing::TestEngine engine = MakeEngine();
  const std::vector<TokenId> prompt{1, 2, 3, 4, 5, 6, 7, 8, 9};
  for (int i = 0; i < 3; ++i) {
    engine.Submit(prompt, Greedy(2));
    RunToEnd(engine);
  }
  SamplingParams scored = Greedy(2);
  scored.prompt_logprobs = 0;
  engine.Submit(prompt, scored);  // reads no cached prefix
  RunToEnd(engine);
  const EngineMetrics metrics = engine.metrics();
  EXPECT_EQ(metrics.num_prefix_cache_queries, 3 * 9);
  EXPECT_EQ(metrics.num_cached_prompt_tokens, 2 * 8);
  EXPECT_EQ(metrics.num_prefilled_tokens, 4 * 9);
  EXPECT_EQ(metrics.num_prefilled_from_cache, 2 * 8);
  EXPECT_EQ(metrics.num_prompt_tokens, 4 * 9 - 2 * 8);
  testing::ExpectValues(metrics.histograms.request_prefill_kv_computed_tokens, {9, 1, 1, 9});
}

TEST_F(MetricsTest, AbortsOfRunningAndWaitingRequestsAreCounted) {
  config_.max_num_seqs = 1;
  testing::TestEngine engine = MakeEngine();
  MetricsAccount account;
  for (int i = 0; i < 4; ++i) {
    account.Submitted(engine.Submit(std::vector<TokenId>{1, 2}, Greedy(5)), 2, 5);
  }
  engine.Cancel(3);  // before the first step
  for (int step = 0; engine.HasUnfinished(); ++step) {
    for (const RequestUpdate& update : engine.Step()) account.Add(update);
    if (step == 1) engine.Cancel(0);  // has emitted two tokens
    if (step == 2) engine.Cancel(2);  // has waited all the time
  }
  const EngineMetrics metrics = engine.metrics();
  account.ExpectEqual(metrics);
  using Reason = FinishReason;
  EXPECT_EQ(metrics.num_finished_by_reason[static_cast<int>(Reason::kAbort)], 3);
  EXPECT_EQ(metrics.num_finished_by_reason[static_cast<int>(Reason::kLength)], 1);
  EXPECT_EQ(metrics.histograms.request_queue_time_seconds.count, 2);
  EXPECT_EQ(metrics.histograms.time_to_first_token_seconds.count, 2);
  testing::ExpectValues(metrics.histograms.request_generation_tokens, {0, 2, 0, 5});
}

TEST_F(MetricsTest, ARequestWithLogitsThatAreNotFiniteIsCorruptedAndCountsItsTokens) {
  ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size, [](auto prefix) {
    std::vector<float> logits = CountingLogits(prefix);
    if (prefix[0] == 7 && prefix.size() > 4) logits[3] = std::nanf("");
    return logits;
  });
  testing::TestEngine engine(config_, executor, nullptr);
  const RequestId broken = engine.Submit(std::vector<TokenId>{7}, Greedy(20));
  const RequestId sound = engine.Submit(std::vector<TokenId>{1}, Greedy(20));
  const auto results = RunToEnd(engine);
  EXPECT_TRUE(results.at(broken).metrics.is_corrupted);
  EXPECT_FALSE(results.at(sound).metrics.is_corrupted);
  EXPECT_EQ(results.at(broken).metrics.num_target_passes, 4);
  EXPECT_EQ(results.at(broken).metrics.num_generated_tokens, 4);
  const EngineMetrics metrics = engine.metrics();
  EXPECT_EQ(metrics.num_target_passes, 4 + 20);
  EXPECT_EQ(metrics.num_finished_by_reason[static_cast<int>(FinishReason::kError)], 1);
  testing::ExpectValues(metrics.histograms.request_generation_tokens, {4, 20});
}

}  // namespace
}  // namespace forerun
