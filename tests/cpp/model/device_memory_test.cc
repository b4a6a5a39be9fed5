// A model computes in its backend's memory alone, which the host cannot read, and allocates nothing
// in a forward pass.
#include <gtest/gtest.h>

#include <numeric>

#include "cpp/model/transformer.h"
#include "tests/cpp/testing/guarded_backend.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

using testing::GuardedBackend;

constexpr int kMaxRows = 40, kMaxLogits = 12, kBlockSize = 16, kNumBlocks = 6, kVocabSize = 101;

struct Pass {
  std::vector<TokenId> tokens;
  SequenceRows sequence;
  std::vector<std::int32_t> logits_rows;
  std::vector<KvMove> moves;  // afterwards
};

// A prompt, then a tree whose second path is moved to follow the prompt, then a token after it.
std::vector<Pass> SomePasses(std::span<const BlockId> blocks) {
  static constexpr std::int32_t kParents[] = {-1, 0, -1, 2};
  std::vector<Pass> passes(3);
  passes[0].sequence = {0, 20, 0, blocks};
  passes[0].logits_rows = {3, 4, 19};
  passes[1].sequence = {0, 5, 20, blocks, {21, kParents}};
  passes[1].logits_rows = {0, 1, 2, 3, 4};
  const auto slot = [&](int s) {
    return std::int64_t{blocks[s / kBlockSize]} * kBlockSize + s % kBlockSize;
  };
  passes[1].moves = {{slot(23), slot(21)}, {slot(24), slot(22)}};
  passes[2].sequence = {0, 1, 23, blocks};
  passes[2].logits_rows = {0};
  TinyRandom random(3);
  for (Pass& pass : passes) {
    for (int i = 0; i < pass.sequence.num_rows; ++i) pass.tokens.push_back(random.Below(101));
  }
  return passes;
}

class DeviceMemoryTest : public ::testing::TestWithParam<std::string> {
 protected:
  DeviceMemoryTest() {
    spec_ = WriteTinyModel(directory_, TinyConfig(GetParam()));
    std::iota(blocks_.rbegin(), blocks_.rend(), 0);
  }

  std::unique_ptr<Transformer> Make(Ops& ops, const FeatureSpec& features) {
    Checkpoint checkpoint(directory_.path());
    const TransformerLimits limits = {kMaxRows,   90,         kBlockSize,
                                      kNumBlocks, kMaxLogits, DType::kBFloat16};
    const ModelFormats formats = UniformFormats(DType::kBFloat16);
    return std::make_unique<Transformer>(spec_, LoadWeights(spec_, checkpoint, formats, ops), ops,
                                         limits, features);
  }

  static std::vector<float> Run(Transformer& model, Backend& backend, const Pass& pass) {
    const ConstRows logits = model.Forward({pass.tokens, {&pass.sequence, 1}, pass.logits_rows});
    EXPECT_EQ(logits.cols, kVocabSize);
    std::vector<float> values(pass.logits_rows.size() * kVocabSize);
    backend.memory().Download(values.data(), logits.data, sizeof(float) * values.size());
    model.MoveKv(pass.moves);
    return values;
  }

  static std::vector<float> Features(const Transformer& model, Backend& backend) {
    const ConstRows rows = model.features()->rows();
    // The last slots are not written.
    std::vector<float> values(static_cast<std::size_t>(rows.cols) * 24);
    for (int i = 0; i < 24; ++i) {
      const int slot = model.features()->RowOf(std::vector<BlockId>{5, 4}, i);
      backend.memory().Download(values.data() + i * rows.cols, rows.row(slot),
                                sizeof(float) * rows.cols);
    }
    return values;
  }

  ModelDirectory directory_;
  ModelSpec spec_;
  std::vector<BlockId> blocks_ = std::vector<BlockId>(kNumBlocks);
};

TEST_P(DeviceMemoryTest, TheHostNeverReadsItAndPassesAllocateNothing) {
  for (const FeatureSpec& features :
       {FeatureSpec{}, FeatureSpec{{0, 2}, false}, FeatureSpec{{1, 3}, true}}) {
    CpuBackend host(/*num_threads=*/2);
    GuardedBackend guarded(/*num_threads=*/2);
    const auto expected = Make(host.ops(), features), model = Make(guarded.ops(), features);
    const int num_allocations = guarded.memory().num_allocations();
    EXPECT_GT(num_allocations, 12);
    for (const Pass& pass : SomePasses(blocks_)) {
      EXPECT_EQ(Run(*model, guarded, pass), Run(*expected, host, pass));
    }
    if (!features.empty()) {
      EXPECT_EQ(Features(*model, guarded), Features(*expected, host));
    }
    EXPECT_EQ(guarded.memory().num_allocations(), num_allocations);
  }
}

TEST_P(DeviceMemoryTest, MoreLogitsThanThereIsRoomForAreABug) {
  CpuBackend host(/*num_threads=*/1);
  const auto model = Make(host.ops(), {});
  Pass pass = SomePasses(blocks_)[0];
  pass.logits_rows.resize(kMaxLogits + 1);
  std::iota(pass.logits_rows.begin(), pass.logits_rows.end(), 0);
  EXPECT_THROW(Run(*model, host, pass), InternalError);
  pass.logits_rows.pop_back();
  EXPECT_NO_THROW(Run(*model, host, pass));
}

INSTANTIATE_TEST_SUITE_P(Families, DeviceMemoryTest,
                         ::testing::Values("llama", "qwen2", "qwen3", "gemma2", "gemma3_text"));

TEST(GuardedBackendDeathTest, HostCodeThatReadsIsFound) {
  GuardedBackend backend(/*num_threads=*/1);
  const AlignedBuffer buffer(backend.memory(), 64);
  EXPECT_DEATH(std::printf("%f", buffer.as<volatile float>()[3]), "");
  std::vector<float> values(4, 1.0f);
  EXPECT_THROW(backend.ops().Scale(2.0f, Rows(values.data(), 1, 4)), InternalError);
  EXPECT_NO_THROW(backend.ops().Scale(2.0f, Rows(buffer.as<float>(), 1, 4)));
}

}  // namespace
}  // namespace forerun
