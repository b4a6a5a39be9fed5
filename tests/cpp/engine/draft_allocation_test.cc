// Drafting with a model allocates nothing while the same requests are drafted for.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpp/draft/neural/model_drafter.h"
#include "cpp/model/transformer.h"
#include "cpp/ops/cpu/cpu_backend.h"
#include "tests/cpp/engine/counted_allocation.h"
#include "tests/cpp/testing/test_engine.h"
#include "tests/cpp/testing/tiny_drafter.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

constexpr int kBlockSize = 16, kNumBlocks = 96, kMaxRows = 64;

// Counts what another drafter allocates while it drafts.
class CountedDrafter : public Drafter {
 public:
  explicit CountedDrafter(Drafter& drafter) : drafter_(drafter) {}

  void Begin(const NewRequest& request) override { drafter_.Begin(request); }
  void Observe(RequestId id, std::span<const TokenId> committed) override {
    drafter_.Observe(id, committed);
  }
  void End(RequestId id) override { drafter_.End(id); }
  void Forget(RequestId id) override { drafter_.Forget(id); }
  void Reset() override { drafter_.Reset(); }
  bool Restore(std::span<const PastOutput> outputs, bool is_last) override {
    return drafter_.Restore(outputs, is_last);
  }
  std::optional<ModelWork> EstimateModelWork(const DraftRequest& request) const override {
    return drafter_.EstimateModelWork(request);
  }
  DraftingReport Prepare(std::span<const DraftRequest> requests) override {
    const std::int64_t before = testing::NumAllocations();
    const DraftingReport report = drafter_.Prepare(requests);
    num_allocations_ += testing::NumAllocations() - before;
    return report;
  }
  void Propose(const DraftRequest& request, DraftTree& draft) override {
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

struct Case {
  ModelMethod method;
  int width;
  DraftSampleMethod sampling;
  bool hybrid = false;
  bool fixed_tree = false;
  bool is_lstm = false;
};

class DraftAllocationTest : public ::testing::TestWithParam<Case> {};

TEST_P(DraftAllocationTest, DraftingAllocatesNothingInTheLongRun) {
  ModelDirectory target_directory, drafter_directory;
  const ModelSpec spec = WriteTinyModel(target_directory, TinyConfig("llama"));
  ModelDrafterOptions drafting;
  drafting.method = GetParam().method;
  if (drafting.method != ModelMethod::kMtp) drafting.model = drafter_directory.path();
  drafting.draft_tree_width = GetParam().width;
  drafting.draft_sample_method = GetParam().sampling;
  if (GetParam().fixed_tree) {
    drafting.speculative_token_tree = {{0}, {1}, {0, 0}, {0, 1}, {1, 0}};
  }
  SpeculativeOptions options;
  options.method = drafting;
  if (GetParam().hybrid) options.method = HybridOptions{.model = drafting};
  options.num_speculative_tokens = 5;
  testing::WriteTinyDrafter(*drafting.method, GetParam().is_lstm, spec, target_directory,
                            drafter_directory);

  CpuBackend backend(/*num_threads=*/2);
  TransformerLimits limits;
  limits.max_rows = kMaxRows;
  limits.max_model_len = 350;
  limits.block_size = kBlockSize;
  limits.num_blocks = kNumBlocks;
  limits.max_logits_rows = kMaxRows;
  ModelDrafterSource source(options, spec, target_directory.path());
  Checkpoint checkpoint(target_directory.path());
  Transformer target(spec,
                     LoadWeights(spec, checkpoint, UniformFormats(DType::kFloat32), backend.ops()),
                     backend.ops(), limits, source.features());
  const std::unique_ptr<Drafter> model =
      source.Load(target, backend, limits, DType::kFloat32, nullptr);
  CountedDrafter drafter(*model);
  EngineConfig config;
  config.max_model_len = limits.max_model_len;
  config.num_blocks = kNumBlocks;
  config.block_size = kBlockSize;
  config.max_num_seqs = 3;
  config.max_num_batched_tokens = 40;
  config.num_speculative_tokens = 5;
  config.adaptive = false;
  testing::TestEngine engine(config, target, &drafter);

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
    ::testing::Values(Case{ModelMethod::kDraftModel, 1, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kDraftModel, 3, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kDraftModel, 1, DraftSampleMethod::kProbabilistic},
                      Case{ModelMethod::kEagle, 1, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kEagle, 3, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kEagle, 1, DraftSampleMethod::kProbabilistic},
                      Case{ModelMethod::kEagle, 1, DraftSampleMethod::kGreedy, true},
                      Case{ModelMethod::kEagle, 3, DraftSampleMethod::kGreedy, true},
                      Case{ModelMethod::kEagle, 1, DraftSampleMethod::kGreedy, false, true},
                      Case{ModelMethod::kEagle3, 1, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kEagle3, 3, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kEagle3, 1, DraftSampleMethod::kGreedy, true},
                      Case{ModelMethod::kMtp, 1, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kMtp, 3, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kMedusa, 1, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kMedusa, 3, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kMlpSpeculator, 1, DraftSampleMethod::kGreedy},
                      Case{ModelMethod::kMlpSpeculator, 1, DraftSampleMethod::kGreedy, false, false,
                           true}));

}  // namespace
}  // namespace forerun
