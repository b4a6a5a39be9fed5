// Contract 1 with models, on the CPU or on a GPU: whatever drafter, batch, chunks, pool and prefix
// cache, ids and log-probabilities are those of plain decoding of one request after the other on
// the same device, and so they are when its launches fail now and then.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cpp/draft/make_drafter.h"
#include "cpp/draft/neural/model_drafter.h"
#include "cpp/engine/engine_core.h"
#include "cpp/kv/slot_map.h"
#include "cpp/model/transformer.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/tested_device.h"
#include "tests/cpp/testing/tiny_drafter.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

constexpr int kMaxModelLen = 80, kBlockSize = 16, kMaxRows = 64, kMaxNumSeqs = 5;
constexpr int kMaxDraft = 5;

struct Case {
  const char* name;
  SpeculativeMethod method;
  DType dtype = DType::kBFloat16;
  bool is_lstm = false;
};

ModelDrafterOptions Model(ModelMethod method, int width,
                          DraftSampleMethod sampling = DraftSampleMethod::kGreedy) {
  ModelDrafterOptions options;
  options.method = method;
  options.draft_tree_width = width;
  options.draft_sample_method = sampling;
  return options;
}

struct Request {
  std::vector<TokenId> prompt;
  SamplingParams params;
};

struct Output {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  friend bool operator==(const Output&, const Output&) = default;
};

class ModelEngineTest : public ::testing::TestWithParam<Case> {
 protected:
  ModelEngineTest() {
    spec_ = WriteTinyModel(target_directory_, TinyConfig("llama"));
    options_.method = GetParam().method;
    options_.num_speculative_tokens = kMaxDraft;
    TransformerLimits limits = {kMaxRows, kMaxModelLen,     kBlockSize,  /*num_blocks=*/0,
                                kMaxRows, GetParam().dtype, kMaxNumSeqs, /*keeps_passes=*/true};
    FeatureSpec features;
    if (ModelDrafterOptions* model = FindModel()) {
      testing::WriteTinyDrafter(*model->method, GetParam().is_lstm, spec_, target_directory_,
                                drafter_directory_);
      if (model->method != ModelMethod::kMtp) model->model = drafter_directory_.path();
      source_ = std::make_unique<ModelDrafterSource>(options_, spec_, target_directory_.path());
      features = source_->features();
    }
    Checkpoint checkpoint(target_directory_.path());
    Ops& ops = device_.ops();
    target_ = std::make_unique<Transformer>(
        spec_, LoadWeights(spec_, checkpoint, UniformFormats(GetParam().dtype), ops), ops, limits,
        features);
    drafter_ = source_ != nullptr
                   ? source_->Load(*target_, device_, limits, GetParam().dtype, nullptr)
                   : MakeDrafter(options_);
  }

  // Runs one example. `words` make a launch of the emulated GPU fail; empty: none does.
  void Run(unsigned seed, const std::string& words = {}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    random_.seed(seed);
    const std::vector<Request> requests = RandomRequests();
    EngineConfig plain = Config();
    plain.max_num_seqs = 1;
    std::vector<Output> expected;
    for (const Request& request : requests) {
      expected.push_back(Generate(plain, nullptr, {request}).front());
    }
    EngineConfig config = Config();
    const int blocks_for_one = NumBlocksFor(kMaxModelLen, kBlockSize);
    config.num_blocks = blocks_for_one + Pick(0, 2 * blocks_for_one);
    config.max_num_seqs = Pick(1, kMaxNumSeqs);
    config.max_num_batched_tokens = config.max_num_seqs + Pick(0, kMaxRows - kMaxNumSeqs);
    config.enable_prefix_caching = Pick(0, 3) > 0;
    config.adaptive = Pick(0, 3) == 0;
    failing_words_ = words;
    EXPECT_EQ(Generate(config, drafter_.get(), requests), expected);
  }

  int num_failures_ = 0;  // of steps and of drafters
  std::int64_t num_accepted_ = 0, num_preemptions_ = 0, num_cached_ = 0;

 private:
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  ModelDrafterOptions* FindModel() {
    if (auto* hybrid = std::get_if<HybridOptions>(&options_.method)) return &hybrid->model;
    return std::get_if<ModelDrafterOptions>(&options_.method);
  }

  static EngineConfig Config() {
    EngineConfig config;
    config.max_model_len = kMaxModelLen;
    config.num_blocks = 2 * NumBlocksFor(kMaxModelLen, kBlockSize);
    config.block_size = kBlockSize;
    config.max_num_batched_tokens = kMaxRows;
    config.num_speculative_tokens = kMaxDraft;
    config.check_invariants = true;
    return config;
  }

  // Prompts begin as earlier ones do, and repeat themselves.
  std::vector<Request> RandomRequests() {
    std::vector<Request> requests(Pick(2, 5));
    std::vector<TokenId> earlier;
    for (Request& request : requests) {
      request.prompt.assign(earlier.begin(), earlier.begin() + Pick(0, std::ssize(earlier)));
      for (int i = Pick(1, 24); i > 0; --i) request.prompt.push_back(3 + Pick(0, 9));
      if (request.prompt.size() > 50) request.prompt.resize(50);
      earlier = request.prompt;
      request.params.temperature = Pick(0, 1) == 0 ? 0.0 : 0.7;
      request.params.seed = random_();
      request.params.max_tokens = Pick(1, 24);
      request.params.ignore_eos = true;
      request.params.logprobs = 1;
    }
    return requests;
  }

  std::vector<Output> Generate(const EngineConfig& config, Drafter* drafter,
                               const std::vector<Request>& requests) {
    target_->ReserveBlocks(config.num_blocks);
    if (source_ != nullptr) source_->ReserveBlocks(config.num_blocks);
    EngineCore engine(config, *target_,
                      device_.MakeVerifier(config.verifier_limits(target_->vocab_size())), drafter,
                      device_.MakePassTimer());
    if (!failing_words_.empty()) testing::ConfigureEmulatedGpu(std::exchange(failing_words_, {}));
    std::vector<Output> outputs(requests.size());
    std::size_t num_submitted = 0;
    while (num_submitted < requests.size() || engine.HasUnfinished()) {
      if (num_submitted < requests.size()) {
        const Request& next = requests[num_submitted++];
        engine.Submit(next.prompt, next.params);
      }
      Step(engine, outputs);
    }
    const EngineMetrics metrics = engine.metrics();
    EXPECT_EQ(metrics.num_held_blocks, 0);
    num_failures_ += metrics.num_drafting_failures > 0 ? 1 : 0;
    num_accepted_ += metrics.spec_decode.num_accepted_tokens;
    num_preemptions_ += metrics.num_preemptions;
    num_cached_ += metrics.num_cached_prompt_tokens;
    return outputs;
  }

  // A step that throws is called again.
  void Step(EngineCore& engine, std::vector<Output>& outputs) {
    std::span<const RequestUpdate> updates;
    try {
      updates = engine.Step();
    } catch (const DeviceError& error) {
      EXPECT_FALSE(error.is_lost());
      ++num_failures_;
      updates = engine.Step();
    }
    for (const RequestUpdate& update : updates) {
      EXPECT_EQ(update.error, "");
      Output& output = outputs[update.id];
      output.tokens.insert(output.tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
      for (const TokenLogprob& entry : update.logprobs.entries) {
        output.logprobs.push_back(entry.logprob);
      }
    }
  }

  Backend& device_ = testing::TestedDevice();
  ModelDirectory target_directory_, drafter_directory_;
  ModelSpec spec_;
  SpeculativeOptions options_;
  std::unique_ptr<ModelDrafterSource> source_;
  std::unique_ptr<Transformer> target_;
  std::unique_ptr<Drafter> drafter_;
  std::mt19937 random_;
  std::string failing_words_;
};

TEST_P(ModelEngineTest, OutputsAreThoseOfPlainDecodingOnTheDevice) {
  const bool is_short = testing::ConfigureEmulatedGpu("failing_launch=0");
  const int usual = 12;
  const int num_examples = is_short ? 1 : testing::NumExamples(usual, 300);
  for (int i = 0; i < num_examples && !HasFailure(); ++i) Run(static_cast<unsigned>(i));
  if (num_examples < usual) return;  // too few for drafters that seldom know a token
  EXPECT_GT(num_accepted_, 0);
  EXPECT_GT(num_cached_, 0);
}

TEST_P(ModelEngineTest, ALaunchThatIsRefusedChangesNothing) {
  if (!testing::ConfigureEmulatedGpu("failing_launch=0")) GTEST_SKIP() << "no emulated GPU";
  Run(/*seed=*/1, "launch_error=701 failing_launch=211");
  EXPECT_EQ(num_failures_, 1);
}

INSTANTIATE_TEST_SUITE_P(
    Methods, ModelEngineTest,
    ::testing::Values(Case{"ngram", NgramOptions{.prompt_lookup_max = 3, .prompt_lookup_min = 1}},
                      Case{"suffix_tree", SuffixOptions{.use_tree = true}, DType::kFloat32},
                      Case{"draft_model", Model(ModelMethod::kDraftModel, 1)},
                      Case{"draft_model_tree", Model(ModelMethod::kDraftModel, 3), DType::kFloat32},
                      Case{"drawn",
                           Model(ModelMethod::kDraftModel, 1, DraftSampleMethod::kProbabilistic)},
                      Case{"eagle_tree", Model(ModelMethod::kEagle, 3)},
                      Case{"eagle3_tree", Model(ModelMethod::kEagle3, 3)},
                      Case{"hybrid", HybridOptions{.model = Model(ModelMethod::kEagle3, 2)}},
                      Case{"mtp", Model(ModelMethod::kMtp, 1)},
                      Case{"medusa", Model(ModelMethod::kMedusa, 3)},
                      Case{"mlp", Model(ModelMethod::kMlpSpeculator, 1)},
                      Case{"lstm", Model(ModelMethod::kMlpSpeculator, 1), DType::kBFloat16, true}),
    [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace forerun
