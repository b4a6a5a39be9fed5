// Drafters that are models, in an engine: they catch up with every request before they draft.
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "cpp/draft/hybrid.h"
#include "cpp/draft/neural/autoregressive.h"
#include "tests/cpp/testing/scripted_executor.h"
#include "tests/cpp/testing/scripted_network.h"
#include "tests/cpp/testing/test_engine.h"

namespace forerun {
namespace {

using testing::ScriptedExecutor;
using testing::ScriptedNetwork;

constexpr int kVocabSize = 13;

struct Setting {
  int block_size = 4;
  int num_blocks = 64;
  int max_num_seqs = 4;
  int max_num_batched_tokens = 32;
  int width = 1;
  int depth = 4;
  int max_rows = 64;  // of a forward of the network
  double share_known = 1.0;
  bool adaptive = false;
};

template <typename Model = AutoregressiveDrafter>
class Served {
 public:
  explicit Served(const Setting& setting)
      : executor_(kVocabSize, setting.num_blocks, setting.block_size) {
    auto network = std::make_unique<ScriptedNetwork>(kVocabSize, setting.num_blocks,
                                                     setting.block_size, setting.share_known);
    network_ = network.get();
    AutoregressiveSetting drafting;
    drafting.width = setting.width;
    drafting.max_depth = setting.depth;
    drafting.vocab_size = kVocabSize;
    drafting.max_rows = setting.max_rows;
    drafting.num_blocks = setting.num_blocks;
    drafter_ = std::make_unique<Model>(std::move(network),
                                       testing::MakeDrafterVerifier(kVocabSize, drafting.max_rows),
                                       nullptr, drafting);
    EngineConfig config;
    config.max_model_len = 60;
    config.num_blocks = setting.num_blocks;
    config.block_size = setting.block_size;
    config.max_num_seqs = setting.max_num_seqs;
    config.max_num_batched_tokens = setting.max_num_batched_tokens;
    config.num_speculative_tokens = setting.width > 1 ? 12 : setting.depth;
    config.adaptive = setting.adaptive;
    config.check_invariants = true;
    core_ = std::make_unique<testing::TestEngine>(config, executor_, drafter_.get());
  }

  void Submit(const std::vector<TokenId>& prompt, int max_tokens, bool drafts = true) {
    SamplingParams params;
    if (!drafts) params.max_draft_tokens = 0;
    params.temperature = 0.0;
    params.max_tokens = max_tokens;
    params.ignore_eos = true;
    core_->Submit(prompt, params);
  }
  EngineMetrics Finish() {
    while (core_->HasUnfinished()) core_->Step();
    return core_->metrics();
  }
  EngineCore& core() { return *core_; }
  int num_network_rows() const { return network_->num_rows(); }
  void FailNextForward() { network_->FailNextForward(); }

 private:
  ScriptedExecutor executor_;
  ScriptedNetwork* network_;
  std::unique_ptr<Model> drafter_;
  std::unique_ptr<testing::TestEngine> core_;
};

std::vector<TokenId> RandomPrompt(std::mt19937& random, int length) {
  std::vector<TokenId> prompt(length);
  for (TokenId& token : prompt) token = static_cast<TokenId>(random() % kVocabSize);
  return prompt;
}

// The network predicts what the target predicts, from the tokens in its slots: a draft token that
// is not accepted was made from a wrong slot.
TEST(ModelDrafterTest, ANetworkThatKnowsTheTargetIsAlwaysRight) {
  std::mt19937 random(3);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  std::int64_t num_preemptions = 0, num_cached = 0;
  for (int example = 0; example < 300; ++example) {
    SCOPED_TRACE(example);
    Setting setting;
    setting.block_size = pick(1, 6);
    const int blocks_for_one = 60 / setting.block_size + 1;
    setting.num_blocks = blocks_for_one + pick(0, 2 * blocks_for_one);
    setting.max_num_seqs = pick(1, 5);
    setting.max_num_batched_tokens = setting.max_num_seqs + pick(0, 20);
    setting.depth = pick(1, 6);
    setting.max_rows = setting.max_num_seqs + pick(0, 12);
    Served<> served(setting);
    const std::vector<TokenId> shared = RandomPrompt(random, 12);
    for (int i = pick(1, 8); i > 0; --i) {
      std::vector<TokenId> prompt(shared.begin(), shared.begin() + pick(0, 12));
      const std::vector<TokenId> own = RandomPrompt(random, pick(1, 9));
      prompt.insert(prompt.end(), own.begin(), own.end());
      served.Submit(prompt, pick(1, 30));
      if (pick(0, 1) == 0) served.core().Step();
    }
    const EngineMetrics metrics = served.Finish();
    ASSERT_EQ(metrics.spec_decode.num_accepted_tokens, metrics.spec_decode.num_draft_tokens);
    num_preemptions += metrics.num_preemptions;
    num_cached += metrics.num_cached_prompt_tokens;
  }
  EXPECT_GT(num_preemptions, 5);
  EXPECT_GT(num_cached, 50);
}

// The right token is always among the candidates after a node, if not always in the draft.
TEST(ModelDrafterTest, ATreeOfANetworkThatKnowsTheTargetIsAcceptedInPart) {
  std::mt19937 random(4);
  Setting setting;
  setting.width = 3;
  Served<> served(setting);
  for (int i = 0; i < 5; ++i) served.Submit(RandomPrompt(random, 7), 41);
  const EngineMetrics metrics = served.Finish();
  EXPECT_GE(metrics.spec_decode.num_accepted_tokens, 2 * metrics.spec_decode.num_drafts);
  EXPECT_LE(metrics.spec_decode.num_accepted_tokens, 4 * metrics.spec_decode.num_drafts);
}

TEST(ModelDrafterTest, APrefixFromTheCacheIsNotComputedAgain) {
  std::mt19937 random(5);
  const std::vector<TokenId> prompt = RandomPrompt(random, 40);
  Setting setting;
  setting.max_num_batched_tokens = 64;
  Served<> served(setting);
  served.Submit(prompt, 9);
  served.Finish();
  const int num_rows = served.num_network_rows();
  served.Submit(prompt, 9);
  const EngineMetrics metrics = served.Finish();
  EXPECT_EQ(metrics.num_cached_prompt_tokens, 36);
  EXPECT_EQ(metrics.spec_decode.num_accepted_tokens, metrics.spec_decode.num_draft_tokens);
  // The first time the whole prompt. The second time at most the tokens after its full blocks: a
  // block that becomes full is found in the cache, with the network's keys and values.
  EXPECT_LE(served.num_network_rows() - num_rows, num_rows - 36);
}

TEST(ModelDrafterTest, APrefixThatRequestsShareIsRunOnce) {
  std::mt19937 random(9);
  const std::vector<TokenId> prompt = RandomPrompt(random, 41);
  Setting setting;
  setting.num_blocks = 128;
  setting.max_num_seqs = 8;
  setting.max_num_batched_tokens = 400;
  for (int max_rows : {16, 400}) {  // in several forwards, and in one
    setting.max_rows = max_rows;
    Served<> served(setting);
    served.Submit(prompt, 2, /*drafts=*/false);  // the target's part comes into the cache
    served.Finish();
    ASSERT_EQ(served.num_network_rows(), 0);
    for (int i = 0; i < 8; ++i) served.Submit(prompt, 3);
    const EngineMetrics metrics = served.Finish();
    EXPECT_EQ(metrics.spec_decode.num_accepted_tokens, metrics.spec_decode.num_draft_tokens);
    // The prompt once, and for each request the end of its last full block, first token and draft.
    EXPECT_LE(served.num_network_rows(), 41 + 8 * 4);
  }
}

TEST(ModelDrafterTest, RowsOfAFailedForwardAreComputedLater) {
  std::mt19937 random(10);
  const std::vector<TokenId> prompt = RandomPrompt(random, 40);
  Served<> served({.max_num_batched_tokens = 64});
  served.FailNextForward();
  served.Submit(prompt, 9);
  EngineMetrics metrics = served.Finish();
  EXPECT_EQ(metrics.num_drafting_failures, 1);
  EXPECT_EQ(metrics.spec_decode.num_drafts, 0);
  served.Submit(prompt, 9);
  metrics = served.Finish();
  EXPECT_EQ(metrics.num_cached_prompt_tokens, 36);
  EXPECT_GE(served.num_network_rows(), 40);  // the target's part was cached, the network's was not
  EXPECT_GT(metrics.spec_decode.num_drafts, 0);
  EXPECT_EQ(metrics.spec_decode.num_accepted_tokens, metrics.spec_decode.num_draft_tokens);
}

// Does not run the model in the first kNumIdleSteps steps.
class IdleAtFirst : public AutoregressiveDrafter {
 public:
  static constexpr int kNumIdleSteps = 10;

  using AutoregressiveDrafter::AutoregressiveDrafter;
  DraftingReport Prepare(std::span<const DraftRequest> requests) override {
    requests_.clear();
    for (const DraftRequest& request : requests) requests_.push_back(request);
    if (num_steps_++ < kNumIdleSteps) {
      for (DraftRequest& request : requests_) request.may_run_model = false;
    }
    return AutoregressiveDrafter::Prepare(requests_);
  }

 private:
  int num_steps_ = 0;
  std::vector<DraftRequest> requests_;
};

TEST(ModelDrafterTest, ARequestThatDidNotDraftForAWhileCatchesUpWhenItDrafts) {
  std::mt19937 random(6);
  Setting setting;
  Served<IdleAtFirst> served(setting);
  served.Submit(RandomPrompt(random, 9), 30);
  // The prompt's step, which drafts nothing, and the idle ones emit a token each.
  for (int i = 0; i <= IdleAtFirst::kNumIdleSteps; ++i) served.core().Step();
  EXPECT_EQ(served.core().metrics().num_generated_tokens, 1 + IdleAtFirst::kNumIdleSteps);
  EXPECT_EQ(served.num_network_rows(), 0);
  served.core().Step();
  EXPECT_GE(served.num_network_rows(), 9 + 1 + IdleAtFirst::kNumIdleSteps);
  const EngineMetrics metrics = served.Finish();
  EXPECT_GT(metrics.spec_decode.num_draft_tokens, 0);
  EXPECT_EQ(metrics.spec_decode.num_accepted_tokens, metrics.spec_decode.num_draft_tokens);
}

TEST(ModelDrafterTest, TheTokensToCatchUpWithAreCounted) {
  constexpr int kNumBlocks = 16, kBlockSize = 4;
  AutoregressiveSetting setting;
  setting.max_depth = 2;
  setting.vocab_size = kVocabSize;
  setting.max_rows = 32;
  setting.num_blocks = kNumBlocks;
  auto network = std::make_unique<ScriptedNetwork>(kVocabSize, kNumBlocks, kBlockSize, 1.0);
  const ScriptedNetwork& seen = *network;
  HybridDrafter drafter(
      std::make_unique<SuffixDrafter>(SuffixOptions()),
      std::make_unique<AutoregressiveDrafter>(
          std::move(network), testing::MakeDrafterVerifier(kVocabSize, setting.max_rows), nullptr,
          setting),
      /*enough_tokens=*/100);
  BlockPool pool(kNumBlocks, kBlockSize, /*enable_prefix_caching=*/false);
  BlockTable table(pool);
  ASSERT_TRUE(table.Reserve(30));
  std::mt19937 random(8);
  std::vector<TokenId> text = RandomPrompt(random, 15);
  drafter.Begin({1, text});
  const SamplingRule greedy;
  for (int num_new : {15, 1, 3, 7}) {
    if (num_new < 15) {
      const std::vector<TokenId> committed = RandomPrompt(random, num_new);
      text.insert(text.end(), committed.begin(), committed.end());
      drafter.Observe(1, committed);
    }
    const DraftRequest request = {.id = 1,
                                  .max_tokens = 2,
                                  .rule = greedy,
                                  .first_output_index = 0,
                                  .tokens = text,
                                  .table = &table};
    EXPECT_EQ(drafter.EstimateModelWork(request)->num_catch_up_tokens, num_new - 1);
    const int num_rows = seen.num_rows();
    EXPECT_EQ(drafter.Prepare(std::span(&request, 1)).num_catch_up_tokens, num_new - 1);
    EXPECT_EQ(drafter.EstimateModelWork(request)->num_catch_up_tokens, 0);
    // These, the last token's row, and a draft token's.
    EXPECT_EQ(seen.num_rows() - num_rows, num_new + 1);
  }
}

TEST(ModelDrafterTest, AnAdaptiveEngineFinishesHoweverOftenTheNetworkIsRight) {
  std::mt19937 random(7);
  for (double share_known : {0.0, 0.5, 1.0}) {
    Setting setting;
    setting.share_known = share_known;
    setting.adaptive = true;
    Served<> served(setting);
    for (int i = 0; i < 6; ++i) served.Submit(RandomPrompt(random, 5), 40);
    EXPECT_EQ(served.Finish().num_generated_tokens, 6 * 40);
  }
}

}  // namespace
}  // namespace forerun
