// The acceptance methods through the engine, with a drafter that samples its draft tokens.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "tests/cpp/testing/chi_square.h"
#include "tests/cpp/testing/naive_generate.h"
#include "tests/cpp/testing/sampling_drafter.h"
#include "tests/cpp/testing/scripted_executor.h"
#include "tests/cpp/testing/test_engine.h"

namespace forerun {
namespace {

using testing::SamplingDrafter;
using testing::ScriptedDrafter;
using testing::ScriptedExecutor;
using Tokens = std::vector<TokenId>;

constexpr int kVocabSize = 7;
constexpr AcceptanceMethod kMethods[] = {AcceptanceMethod::kCoupled, AcceptanceMethod::kRejection,
                                         AcceptanceMethod::kBlock};

std::vector<float> TargetLogits(std::span<const TokenId> text) {
  std::vector<float> logits = testing::HashLogits(text, kVocabSize);
  for (float& logit : logits) logit *= 0.4f;
  return logits;
}

// Like the target, but with other logits for every second token.
std::vector<float> NearLogits(std::span<const TokenId> text) {
  std::vector<float> logits = TargetLogits(text);
  for (int token = 0; token < kVocabSize; token += 2) logits[token] += 0.8f;
  return logits;
}

EngineConfig SmallConfig(AcceptanceMethod method) {
  EngineConfig config;
  config.max_model_len = 40;
  config.num_blocks = 64;
  config.block_size = 4;
  config.max_num_seqs = 8;
  config.max_num_batched_tokens = 64;
  config.num_speculative_tokens = 4;
  config.adaptive = false;
  config.acceptance_method = method;
  config.check_invariants = true;
  return config;
}

SamplingParams Params(std::uint64_t seed, int max_tokens, double temperature = 1.0) {
  SamplingParams params;
  params.temperature = temperature;
  params.seed = seed;
  params.max_tokens = max_tokens;
  return params;
}

class Served {
 public:
  Served(const EngineConfig& config, Drafter* drafter)
      : executor(kVocabSize, config.num_blocks, config.block_size, TargetLogits),
        engine(config, executor, drafter) {}

  // Returns texts by request. A step that throws is run again.
  std::map<RequestId, Tokens> ToEnd() {
    std::map<RequestId, Tokens> texts;
    while (engine.HasUnfinished()) {
      try {
        for (const RequestUpdate& update : engine.Step()) {
          Tokens& text = texts[update.id];
          text.insert(text.end(), update.new_tokens.begin(), update.new_tokens.end());
        }
      } catch (const std::runtime_error&) {
        ++num_failures;
      }
    }
    return texts;
  }

  ScriptedExecutor executor;
  testing::TestEngine engine;
  int num_failures = 0;
};

Tokens DecodedPlainly(const Tokens& prompt, const SamplingParams& params) {
  testing::NaiveModel model;
  model.logits_of = TargetLogits;
  model.token_bytes.resize(kVocabSize);
  model.max_model_len = 40;
  return testing::NaiveGenerate(model, prompt, params, *params.seed).tokens;
}

TEST(AcceptanceEngineTest, SamplingWithTheTargetsNoiseDraftsWhatTheTargetSamples) {
  SamplingDrafter drafter(TargetLogits);
  Served run(SmallConfig(AcceptanceMethod::kCoupled), &drafter);
  std::map<RequestId, Tokens> expected;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    const SamplingParams params = Params(seed, 30, 0.5 + 0.2 * static_cast<double>(seed));
    expected[run.engine.Submit(Tokens{1}, params)] = DecodedPlainly({1}, params);
  }
  EXPECT_EQ(run.ToEnd(), expected);
  const SpecDecodeCounters counters = run.engine.metrics().spec_decode;
  EXPECT_GT(counters.num_draft_tokens, 100);
  EXPECT_EQ(counters.num_accepted_tokens, counters.num_draft_tokens);
}

TEST(AcceptanceEngineTest, AtTemperatureZeroEveryMethodIsTheArgMax) {
  for (AcceptanceMethod method : kMethods) {
    SamplingDrafter drafter(NearLogits);
    Served run(SmallConfig(method), &drafter);
    const RequestId id = run.engine.Submit(Tokens{3, 1}, Params(1, 30, 0.0));
    EXPECT_EQ(run.ToEnd()[id], DecodedPlainly({3, 1}, Params(1, 30, 0.0)));
  }
}

TEST(AcceptanceEngineTest, WithoutDraftsEveryMethodDecodesPlainly) {
  for (AcceptanceMethod method : kMethods) {
    SamplingDrafter drafter(NearLogits);
    SamplingParams params = Params(5, 30);
    params.speculative = false;
    Served run(SmallConfig(method), &drafter);
    const RequestId id = run.engine.Submit(Tokens{3, 1}, params);
    EXPECT_EQ(run.ToEnd()[id], DecodedPlainly({3, 1}, params));
  }
}

TEST(AcceptanceEngineTest, AStepThatIsRunAgainGivesTheSameTokens) {
  for (AcceptanceMethod method : {AcceptanceMethod::kRejection, AcceptanceMethod::kBlock}) {
    std::map<RequestId, Tokens> undisturbed;
    for (int failing_call = -1; failing_call < 6; ++failing_call) {
      SamplingDrafter drafter(NearLogits);
      Served run(SmallConfig(method), &drafter);
      if (failing_call >= 0) run.executor.FailAfter(failing_call);
      run.engine.Submit(Tokens{2, 5}, Params(11, 30));
      run.engine.Submit(Tokens{4, 0}, Params(12, 30));
      const auto texts = run.ToEnd();
      if (failing_call < 0) undisturbed = texts;
      EXPECT_EQ(run.num_failures, failing_call < 0 ? 0 : 1);
      EXPECT_EQ(texts, undisturbed);
    }
  }
}

// 20,000 requests of three tokens, through the whole engine and not only through Verify.
TEST(AcceptanceEngineTest, TheOutputsDistributionIsTheTargets) {
  std::vector<double> expected;
  const auto probs_after = [](const Tokens& text) {
    std::vector<double> probs;
    for (float logit : TargetLogits(text)) probs.push_back(std::exp(double{logit}));
    const double total = std::accumulate(probs.begin(), probs.end(), 0.0);
    for (double& prob : probs) prob /= total;
    return probs;
  };
  const Tokens prompt = {1};
  const std::vector<double> first = probs_after(prompt);
  for (TokenId a = 0; a < kVocabSize; ++a) {
    const std::vector<double> second = probs_after({1, a});
    for (TokenId b = 0; b < kVocabSize; ++b) {
      const std::vector<double> third = probs_after({1, a, b});
      for (TokenId c = 0; c < kVocabSize; ++c) expected.push_back(first[a] * second[b] * third[c]);
    }
  }
  for (AcceptanceMethod method : {AcceptanceMethod::kRejection, AcceptanceMethod::kBlock}) {
    SamplingDrafter drafter(NearLogits);
    Served run(SmallConfig(method), &drafter);
    std::vector<int> counts(expected.size());
    for (std::uint64_t batch = 0; batch < 2500; ++batch) {
      // The last tokens are generated so that drafts extend beyond the counted ones.
      for (std::uint64_t i = 0; i < 8; ++i) run.engine.Submit(prompt, Params(batch * 8 + i, 5));
      for (const auto& [id, text] : run.ToEnd()) {
        ++counts[(text[0] * kVocabSize + text[1]) * kVocabSize + text[2]];
      }
    }
    EXPECT_LT(testing::Surprise(counts, expected), testing::kTooSurprising);
    const SpecDecodeCounters counters = run.engine.metrics().spec_decode;
    EXPECT_GT(counters.num_accepted_tokens, counters.num_draft_tokens / 4);
    EXPECT_LT(counters.num_accepted_tokens, counters.num_draft_tokens * 9 / 10);
  }
}

}  // namespace
}  // namespace forerun
