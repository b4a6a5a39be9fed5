// An index and a model that draft together: each continues the other's draft.
#include "cpp/draft/hybrid.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "cpp/draft/neural/autoregressive.h"
#include "tests/cpp/testing/scripted_executor.h"
#include "tests/cpp/testing/scripted_network.h"
#include "tests/cpp/testing/test_engine.h"

namespace forerun {
namespace {

using testing::ScriptedExecutor;
using testing::ScriptedNetwork;

constexpr int kVocabSize = 13, kNumBlocks = 64, kBlockSize = 4, kDepth = 4;

// A model that does not see the index's draft.
class WithoutPriorDraft : public AutoregressiveDrafter {
 public:
  using AutoregressiveDrafter::AutoregressiveDrafter;
  DraftingReport Prepare(std::span<const DraftRequest> requests) override {
    requests_.clear();
    for (const DraftRequest& request : requests) requests_.push_back(request);
    for (DraftRequest& request : requests_) request.prior_draft = nullptr;
    return AutoregressiveDrafter::Prepare(requests_);
  }

 private:
  std::vector<DraftRequest> requests_;
};

// Serves the same prompts twice; returns the second run's counters. The index
// remembers them, but drafts no more than two tokens at a time.
template <typename Model>
SpecDecodeCounters ServeTwice(double share_known) {
  ScriptedExecutor executor(kVocabSize, kNumBlocks, kBlockSize);
  AutoregressiveSetting drafting;
  drafting.max_depth = kDepth;
  drafting.vocab_size = kVocabSize;
  drafting.max_rows = 64;
  drafting.num_blocks = kNumBlocks;
  auto model = std::make_unique<Model>(
      std::make_unique<ScriptedNetwork>(kVocabSize, kNumBlocks, kBlockSize, share_known),
      testing::MakeDrafterVerifier(kVocabSize, drafting.max_rows), nullptr, drafting);
  auto index = std::make_unique<SuffixDrafter>(SuffixOptions(), /*max_draft_tokens=*/2);
  HybridDrafter drafter(std::move(index), std::move(model),
                        /*enough_tokens=*/kDepth);
  EngineConfig config;
  config.max_model_len = 60;
  config.num_blocks = kNumBlocks;
  config.block_size = kBlockSize;
  config.max_num_seqs = 2;
  config.max_num_batched_tokens = 32;
  config.num_speculative_tokens = 12;
  config.adaptive = false;
  config.check_invariants = true;
  testing::TestEngine engine(config, executor, &drafter);
  EngineMetrics first;
  for (int run = 0; run < 2; ++run) {
    first = engine.metrics();
    std::mt19937 random(8);
    for (int i = 0; i < 8; ++i) {
      std::vector<TokenId> prompt(6);
      for (TokenId& token : prompt) token = static_cast<TokenId>(random() % kVocabSize);
      SamplingParams params;
      params.temperature = 0.0;
      params.max_tokens = 50;
      params.ignore_eos = true;
      engine.Submit(prompt, params);
    }
    while (engine.HasUnfinished()) engine.Step();
  }
  SpecDecodeCounters counters = engine.metrics().spec_decode;
  counters.num_drafts -= first.spec_decode.num_drafts;
  counters.num_accepted_tokens -= first.spec_decode.num_accepted_tokens;
  return counters;
}

TEST(HybridTest, TheModelContinuesTheDraftOfTheIndex) {
  // The model is right after half of all texts only; the index has seen these texts.
  const SpecDecodeCounters with_prior = ServeTwice<AutoregressiveDrafter>(0.5);
  const SpecDecodeCounters without_prior = ServeTwice<WithoutPriorDraft>(0.5);
  EXPECT_LT(with_prior.num_drafts, without_prior.num_drafts);
  const auto mean = [](const SpecDecodeCounters& counters) {
    return static_cast<double>(counters.num_accepted_tokens) / counters.num_drafts;
  };
  EXPECT_GT(mean(with_prior), mean(without_prior) + 0.3);
}

HybridDrafter MakeHybrid() {
  AutoregressiveSetting drafting;
  drafting.vocab_size = kVocabSize;
  drafting.max_rows = 8;
  drafting.num_blocks = kNumBlocks;
  return HybridDrafter(
      std::make_unique<SuffixDrafter>(SuffixOptions()),
      std::make_unique<AutoregressiveDrafter>(
          std::make_unique<ScriptedNetwork>(kVocabSize, kNumBlocks, kBlockSize, 1.0),
          testing::MakeDrafterVerifier(kVocabSize, drafting.max_rows), nullptr, drafting),
      /*enough_tokens=*/kDepth);
}

TEST(HybridTest, TheIndexLearnsFromRestoredOutputsOfTheTenant) {
  HybridDrafter drafter = MakeHybrid();
  const std::vector<TokenId> output = {4, 5, 6, 7}, prompt = {4, 5};
  const PastOutput past = {output, "a"};
  EXPECT_TRUE(drafter.Restore({&past, 1}, /*is_last=*/true));
  const SamplingRule rule;
  for (const char* tenant : {"a", "b"}) {
    const RequestId id = *tenant;
    drafter.Begin({id, prompt, tenant});
    DraftRequest request = {id, 2, rule, 0, prompt};
    request.may_run_model = false;
    const DraftingReport report = drafter.Prepare({&request, 1});
    const std::vector<TokenId> drafted = report.requests[0].draft_without_model->tokens;
    EXPECT_EQ(drafted, *tenant == 'a' ? (std::vector<TokenId>{6, 7}) : std::vector<TokenId>());
  }
}

TEST(HybridTest, ReportsWhatTheIndexWouldHaveDraftedAlone) {
  HybridDrafter drafter = MakeHybrid();
  const std::vector<TokenId> text = {1, 2, 3, 4, 5, 6, 1, 2, 3};
  drafter.Begin({7, text});
  const SamplingRule rule;
  DraftRequest request = {7, 3, rule, 0, text};
  request.may_run_model = false;
  const DraftingReport report = drafter.Prepare({&request, 1});
  ASSERT_EQ(report.requests.size(), 1u);
  EXPECT_FALSE(report.requests[0].ran_model);
  ASSERT_NE(report.requests[0].draft_without_model, nullptr);
  EXPECT_EQ(report.requests[0].draft_without_model->tokens, (std::vector<TokenId>{4, 5, 6}));
}

}  // namespace
}  // namespace forerun
