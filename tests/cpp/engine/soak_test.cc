// One engine that serves many thousand requests of every kind over a tiny pool: every block is
// accounted for after every step, every request ends, and memory does not grow.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "cpp/draft/make_drafter.h"
#include "tests/cpp/engine/counted_allocation.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_engine.h"
#include "tests/cpp/testing/test_engine.h"

namespace forerun {
namespace {

constexpr int kVocabSize = testing::RandomEngine::kVocabSize;
constexpr int kNumRounds = 10;  // at whose ends memory is compared

class Soak {
 public:
  Soak() {
    config_.block_size = 4;
    config_.max_model_len = 60;
    config_.num_blocks = 28;
    config_.max_num_seqs = 5;
    config_.max_num_batched_tokens = 24;
    config_.num_speculative_tokens = 6;
    config_.eos_token_ids = {0};
    config_.adaptive = false;  // or how much is drafted would depend on the clock
    config_.check_invariants = true;
    SpeculativeOptions options;
    options.method = SuffixOptions{.max_cached_requests = 40, .use_tree = true};
    drafter_ = MakeDrafter(options);
    executor_ = std::make_unique<testing::ScriptedExecutor>(kVocabSize, config_.num_blocks,
                                                            config_.block_size);
    engine_ = std::make_unique<testing::TestEngine>(config_, *executor_, drafter_.get());
    std::vector<std::string> token_bytes;
    for (TokenId token = 0; token < kVocabSize; ++token) {
      token_bytes.push_back(std::string(1 + token % 2, "abc"[token % 3]));
    }
    engine_->SetTokenBytes(token_bytes, {0, 5});
  }

  // Serves that many more requests until they finish.
  void Serve(int num_requests) {
    while (num_requests > 0 || engine_->HasUnfinished()) {
      while (num_requests > 0 && (Pick(0, 2) > 0 || !engine_->HasUnfinished())) {
        Submit();
        --num_requests;
      }
      if (Pick(0, 40) == 0 && !unfinished_.empty()) engine_->Cancel(unfinished_.begin()->first);
      for (const RequestUpdate& update : engine_->Step()) {
        if (update.finish_reason == FinishReason::kNone) continue;
        EXPECT_NE(update.finish_reason, FinishReason::kError) << update.error;
        EXPECT_EQ(unfinished_.erase(update.id), 1u);
        num_aborted_ += update.finish_reason == FinishReason::kAbort;
      }
    }
    EXPECT_TRUE(unfinished_.empty());
  }

  EngineMetrics metrics() const { return engine_->metrics(); }
  int num_aborted() const { return num_aborted_; }

 private:
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  void Submit() {
    std::vector<TokenId> prompt;
    for (int i = Pick(0, 16); i > 0; --i) prompt.push_back(1 + i % 3);
    for (int i = Pick(1, 30); i > 0; --i) prompt.push_back(Pick(0, kVocabSize - 1));
    SamplingParams params;
    params.max_tokens = Pick(1, 60);
    testing::RandomEngine::SetRandomParams(random_, params);
    unfinished_.emplace(engine_->Submit(prompt, params), true);
  }

  std::mt19937 random_{3};
  EngineConfig config_;
  std::unique_ptr<Drafter> drafter_;
  std::unique_ptr<testing::ScriptedExecutor> executor_;
  std::unique_ptr<testing::TestEngine> engine_;
  std::map<RequestId, bool> unfinished_;
  int num_aborted_ = 0;
};

TEST(SoakTest, ManyRequestsLeakNothing) {
  // With fewer, caches would still be filling up in the second half.
  const int num_requests = std::max(400, testing::NumExamples(1000, 20000));
  Soak soak;
  std::vector<std::int64_t> live;
  for (int round = 0; round < kNumRounds; ++round) {
    soak.Serve(num_requests / kNumRounds);
    const EngineMetrics metrics = soak.metrics();
    EXPECT_EQ(metrics.num_held_blocks, 0);
    EXPECT_EQ(metrics.num_free_blocks + metrics.num_cached_blocks, metrics.num_total_blocks);
    live.push_back(testing::NumLiveBytes());
  }
  const EngineMetrics metrics = soak.metrics();
  EXPECT_EQ(metrics.num_finished_requests, num_requests);
  EXPECT_GT(metrics.num_preemptions, num_requests / 20);
  EXPECT_GT(metrics.spec_decode.num_accepted_tokens, num_requests);
  EXPECT_GT(soak.num_aborted(), 0);
  const auto middle = live.begin() + kNumRounds / 2;
  EXPECT_LT(static_cast<double>(*std::max_element(middle, live.end())),
            1.1 * static_cast<double>(*std::max_element(live.begin(), middle)));
  RecordProperty("live_bytes_at_first", std::to_string(live.front()));
  RecordProperty("live_bytes_at_last", std::to_string(live.back()));
}

}  // namespace
}  // namespace forerun
