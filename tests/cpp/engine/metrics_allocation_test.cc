// Counting allocates nothing, once the requests are set up and a first copy was published.
#include <gtest/gtest.h>

#include "cpp/engine/metrics_recorder.h"
#include "tests/cpp/engine/counted_allocation.h"

namespace forerun {
namespace {

TEST(MetricsAllocationTest, CountingAStepAllocatesNothing) {
  BlockPool pool(/*num_blocks=*/8, /*block_size=*/4, /*prefix_caching=*/true);
  Request request(0, pool, /*max_len=*/32);
  RequestSetting setting;
  setting.vocab_size = 16;
  request.SetUp(std::vector<TokenId>{1, 2, 3}, SamplingParams(), {}, setting);
  request.num_cached_tokens = 0;
  MetricsRecorder recorder(/*max_model_len=*/32, /*num_speculative_tokens=*/4,
                           /*record_draft_steps=*/true);
  recorder.SetUp(request);
  for (TokenId token : {4, 5, 6}) request.draft.AppendToChain(token, 1.0f);
  StepPlan plan;
  plan.requests.push_back({&request, 3, 3, true});
  recorder.Prepare(plan, /*looks_up=*/true);
  EngineMetrics published = recorder.counters();

  const std::int64_t before = testing::NumAllocations();
  for (int step = 0; step < 8; ++step) {
    recorder.BeginCommits(1e9 + step);
    recorder.CountPrompt(request, 3);
    recorder.CountEmitted(request, 2, 1);
    recorder.EndCommits();
    published = recorder.counters();
  }
  request.finish_reason = FinishReason::kLength;
  recorder.CountFinish(request);
  EXPECT_EQ(testing::NumAllocations(), before);
  EXPECT_EQ(published.num_generated_tokens, 16);
  EXPECT_EQ(published.spec_decode.num_draft_tokens_per_pos,
            (std::vector<std::int64_t>{8, 8, 8, 0}));
}

}  // namespace
}  // namespace forerun
