// An engine and its drafter compute in their backend's memory alone: over memory that the host
// cannot read, tokens are those of the CPU, and a step allocates nothing there.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "cpp/draft/neural/model_drafter.h"
#include "cpp/engine/engine_core.h"
#include "cpp/model/transformer.h"
#include "tests/cpp/testing/guarded_backend.h"
#include "tests/cpp/testing/tiny_drafter.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

struct Case {
  ModelMethod method;
  int width = 1;
  bool hybrid = false;
  bool is_lstm = false;
};

struct Result {
  std::map<RequestId, std::vector<TokenId>> tokens;
  std::map<RequestId, std::vector<float>> logprobs;
  std::int64_t num_draft_tokens = 0, num_accepted_tokens = 0;
};

class DeviceEngineTest : public ::testing::TestWithParam<Case> {
 protected:
  DeviceEngineTest() {
    spec_ = WriteTinyModel(target_, TinyConfig("llama"));
    ModelDrafterOptions drafting;
    drafting.method = GetParam().method;
    if (drafting.method != ModelMethod::kMtp) drafting.model = drafter_.path();
    drafting.draft_tree_width = GetParam().width;
    options_.method = drafting;
    if (GetParam().hybrid) options_.method = HybridOptions{.model = drafting};
    options_.num_speculative_tokens = 5;
    testing::WriteTinyDrafter(*drafting.method, GetParam().is_lstm, spec_, target_, drafter_);
  }

  // Runs some requests; after_loading is called in between.
  template <typename AfterLoading>
  Result Generate(Backend& backend, const AfterLoading& after_loading) {
    EngineConfig config;
    config.max_model_len = 200;
    config.num_blocks = 48;
    config.block_size = 16;
    config.max_num_seqs = 3;
    config.max_num_batched_tokens = 40;
    config.num_speculative_tokens = 5;
    config.adaptive = false;
    config.check_invariants = true;
    TransformerLimits limits = {40, config.max_model_len, config.block_size, config.num_blocks,
                                config.max_logits_rows()};
    ModelDrafterSource source(options_, spec_, target_.path());
    Checkpoint checkpoint(target_.path());
    Transformer target(
        spec_, LoadWeights(spec_, checkpoint, UniformFormats(DType::kFloat32), backend.ops()),
        backend.ops(), limits, source.features());
    limits.max_logits_rows = config.max_num_seqs * source.num_level_rows();
    const auto drafter = source.Load(target, backend, limits, DType::kFloat32, nullptr);
    EngineCore engine(config, target,
                      backend.MakeVerifier(config.verifier_limits(target.vocab_size())),
                      drafter.get());
    after_loading();
    for (int i = 0; i < 5; ++i) {
      SamplingParams params;
      params.temperature = i % 2 == 0 ? 0.0 : 0.8;
      params.seed = i;
      params.max_tokens = 60;
      params.ignore_eos = true;
      params.logprobs = 1;
      if (i == 4) params.prompt_logprobs = 2;
      engine.Submit(std::vector<TokenId>(5 + 16 * i, 7 + i), params);
    }
    Result result;
    while (engine.HasUnfinished()) {
      for (const RequestUpdate& update : engine.Step()) {
        EXPECT_EQ(update.error, "");
        auto& tokens = result.tokens[update.id];
        tokens.insert(tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
        for (const TokenLogprobs& logprobs : {update.logprobs, update.prompt_logprobs}) {
          for (const TokenLogprob& entry : logprobs.entries) {
            result.logprobs[update.id].push_back(entry.logprob);
          }
        }
      }
    }
    result.num_draft_tokens = engine.metrics().spec_decode.num_draft_tokens;
    result.num_accepted_tokens = engine.metrics().spec_decode.num_accepted_tokens;
    return result;
  }

  ModelDirectory target_, drafter_;
  ModelSpec spec_;
  SpeculativeOptions options_;
};

TEST_P(DeviceEngineTest, TokensAreThoseOfTheCpuAndStepsAllocateNothing) {
  CpuBackend host(/*num_threads=*/2);
  testing::GuardedBackend guarded(/*num_threads=*/2);
  const Result expected = Generate(host, [] {});
  int num_allocations = 0;
  const Result result =
      Generate(guarded, [&] { num_allocations = guarded.memory().num_allocations(); });
  EXPECT_EQ(result.tokens, expected.tokens);
  EXPECT_EQ(result.logprobs, expected.logprobs);
  EXPECT_EQ(result.tokens.size(), 5u);
  EXPECT_EQ(result.num_draft_tokens, expected.num_draft_tokens);
  EXPECT_GT(result.num_draft_tokens, 200);
  EXPECT_EQ(result.num_accepted_tokens, expected.num_accepted_tokens);
  EXPECT_EQ(guarded.memory().num_allocations(), num_allocations);
}

INSTANTIATE_TEST_SUITE_P(
    Models, DeviceEngineTest,
    ::testing::Values(Case{ModelMethod::kDraftModel}, Case{ModelMethod::kDraftModel, 3},
                      Case{ModelMethod::kEagle}, Case{ModelMethod::kEagle, 3},
                      Case{ModelMethod::kEagle, 1, true}, Case{ModelMethod::kEagle3},
                      Case{ModelMethod::kEagle3, 3}, Case{ModelMethod::kMtp},
                      Case{ModelMethod::kMtp, 3}, Case{ModelMethod::kMedusa},
                      Case{ModelMethod::kMedusa, 3}, Case{ModelMethod::kMlpSpeculator},
                      Case{ModelMethod::kMlpSpeculator, 1, false, true}));

}  // namespace
}  // namespace forerun
