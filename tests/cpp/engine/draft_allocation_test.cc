// Drafting with a model allocates nothing while the same requests are drafted for.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpp/draft/model_drafter.h"
#include "cpp/engine/engine_core.h"
#include "cpp/model/transformer.h"
#include "cpp/util/thread_team.h"
#include "tests/cpp/engine/counted_allocation.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

constexpr int kBlockSize = 16, kNumBlocks = 96, kMaxRows = 64;

// Counts what another drafter allocates while it drafts.
class CountedDrafter : public Drafter {
 public:
  explicit CountedDrafter(Drafter& drafter) : drafter_(drafter) {}

  void Begin(RequestId id, std::span<const TokenId> prompt) override { drafter_.Begin(id, prompt); }
  void Observe(RequestId id, std::span<const TokenId> committed) override {
    drafter_.Observe(id, committed);
  }
  void End(RequestId id) override { drafter_.End(id); }
  void Forget(RequestId id) override { drafter_.Forget(id); }
  void Reset() override { drafter_.Reset(); }
  int num_draft_slots(int max_tokens) const override {
    return drafter_.num_draft_slots(max_tokens);
  }
  int num_forwards() const override { return drafter_.num_forwards(); }
  int num_caught_up() const override { return drafter_.num_caught_up(); }
  bool is_model() const override { return drafter_.is_model(); }
  bool RanModel(RequestId id) const override { return drafter_.RanModel(id); }
  void Prepare(std::span<const DraftRequest> requests) override {
    const std::int64_t before = testing::NumAllocations();
    drafter_.Prepare(requests);
    num_allocations_ += testing::NumAllocations() - before;
  }
  void Propose(const DraftRequest& request, Draft& draft) override {
    const std::int64_t before = testing::NumAllocations();
    drafter_.Propose(request, draft);
    num_allocations_ += testing::NumAllocations() - before;
    num_tokens_ += draft.size();
  }

  std::int64_t num_allocations() const { return num_allocations_; }
  int num_tokens() const { return num_tokens_; }

 private:
  Drafter& drafter_;
  std::int64_t num_allocations_ = 0;
  int num_tokens_ = 0;
};

// An EAGLE head made of a model's first layer.
void WriteEagle(const ModelDirectory& directory, const std::string& config, const ModelSpec& spec) {
  directory.Write("config.json", config);
  std::vector<NamedTensor> tensors;
  const std::string layer = "model.layers.0.";
  for (NamedTensor& tensor : TinyTensors(spec, 5)) {
    if (!tensor.name.starts_with(layer) || tensor.name.ends_with("input_layernorm.weight")) {
      continue;
    }
    tensor.name.erase(0, std::string("model.").size());
    tensors.push_back(std::move(tensor));
  }
  const int hidden = spec.hidden_size;
  tensors.push_back(Float32Tensor("fc.weight", {hidden, 2 * hidden},
                                  TinyRandom(6).Values(std::int64_t{2} * hidden * hidden, 0.2f)));
  directory.WriteTensors(tensors);
}

struct Case {
  SpeculativeMethod method;
  int width;
  DraftSampleMethod sampling;
  bool hybrid = false;
  bool fixed_tree = false;
};

class DraftAllocationTest : public ::testing::TestWithParam<Case> {};

TEST_P(DraftAllocationTest, DraftingAllocatesNothingInTheLongRun) {
  ModelDirectory target_directory, drafter_directory;
  const ModelSpec spec = WriteTinyModel(target_directory, TinyConfig("llama"));
  SpeculativeOptions options;
  options.method = GetParam().method;
  options.model = drafter_directory.path();
  options.draft_tree_width = GetParam().width;
  options.draft_sample_method = GetParam().sampling;
  options.num_speculative_tokens = 5;
  options.hybrid = GetParam().hybrid;
  if (GetParam().fixed_tree) {
    options.speculative_token_tree = {{0}, {1}, {0, 0}, {0, 1}, {1, 0}};
  }
  if (options.method == SpeculativeMethod::kDraftModel) {
    WriteTinyModel(drafter_directory, TinyConfig("llama"), 9);
  } else {
    WriteEagle(drafter_directory, TinyConfig("llama", R"("num_hidden_layers": 1)"), spec);
  }

  ThreadTeam team(2);
  const std::unique_ptr<Ops> ops = MakeCpuOps(team, "");
  TransformerLimits limits;
  limits.max_rows = kMaxRows;
  limits.max_model_len = 350;
  limits.block_size = kBlockSize;
  limits.num_blocks = kNumBlocks;
  ModelDrafterSource source(options, spec, target_directory.path());
  Checkpoint checkpoint(target_directory.path());
  Transformer target(spec, LoadWeights(spec, checkpoint, DType::kFloat32, *ops), *ops, limits,
                     source.features());
  const std::unique_ptr<Drafter> model = source.Load(target, *ops, limits);
  CountedDrafter drafter(*model);
  EngineConfig config;
  config.max_model_len = limits.max_model_len;
  config.num_blocks = kNumBlocks;
  config.block_size = kBlockSize;
  config.max_num_seqs = 3;
  config.max_num_batched_tokens = 40;
  config.num_speculative_tokens = 5;
  config.adaptive = false;
  EngineCore engine(config, target, &drafter);

  for (int i = 0; i < config.max_num_seqs; ++i) {
    SamplingParams params;
    params.temperature = i % 2 == 0 ? 0.0 : 0.8;
    params.seed = i;
    params.max_tokens = 320;
    params.ignore_eos = true;
    engine.Submit(std::vector<TokenId>(5 + 6 * i, 7 + i), params);
  }
  for (int i = 0; i < 25; ++i) engine.Step();
  const std::int64_t first = drafter.num_allocations();
  const int num_tokens = drafter.num_tokens();
  for (int i = 0; i < 25; ++i) engine.Step();
  ASSERT_EQ(engine.metrics().num_finished_requests, 0);
  EXPECT_GT(first, 0);  // or nothing is counted
  EXPECT_GT(drafter.num_tokens(), num_tokens + 250);
  EXPECT_EQ(drafter.num_allocations(), first);
}

INSTANTIATE_TEST_SUITE_P(
    Models, DraftAllocationTest,
    ::testing::Values(Case{SpeculativeMethod::kDraftModel, 1, DraftSampleMethod::kGreedy},
                      Case{SpeculativeMethod::kDraftModel, 3, DraftSampleMethod::kGreedy},
                      Case{SpeculativeMethod::kDraftModel, 1, DraftSampleMethod::kProbabilistic},
                      Case{SpeculativeMethod::kEagle, 1, DraftSampleMethod::kGreedy},
                      Case{SpeculativeMethod::kEagle, 3, DraftSampleMethod::kGreedy},
                      Case{SpeculativeMethod::kEagle, 1, DraftSampleMethod::kProbabilistic},
                      Case{SpeculativeMethod::kEagle, 1, DraftSampleMethod::kGreedy, true},
                      Case{SpeculativeMethod::kEagle, 3, DraftSampleMethod::kGreedy, true},
                      Case{SpeculativeMethod::kEagle, 1, DraftSampleMethod::kGreedy, false, true}));

}  // namespace
}  // namespace forerun
