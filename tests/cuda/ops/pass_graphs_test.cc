// Passes that are kept as graphs: the bits of passes that are not, by one launch each.
#include "cuda/ops/pass_graphs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "cpp/model/transformer.h"
#include "cuda/ops/cuda_ops.h"
#include "forerun/error.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_floats.h"
#include "tests/cpp/testing/random_tree.h"
#include "tests/cpp/testing/tiny_model.h"
#include "tests/cuda/build_kind.h"
#include "tests/cuda/ops/gpu_rows.h"
#ifdef FORERUN_EMULATED_GPU
#include "cuda/emulation/emulation.h"
#endif

namespace forerun::cuda {
namespace {

// What a pass cost. A GPU does not tell.
struct Costs {
  std::uint64_t graph_launches = 0, allocations = 0, waits = 0;
};
#ifdef FORERUN_EMULATED_GPU
Costs CostsUntilNow() {
  const emulation::Counters& all = emulation::counters();
  return {all.graph_launches, all.allocations, all.waits};
}
#endif

constexpr int kBlockSize = 16, kMaxLen = 640, kMaxRows = 300, kNumBlocks = 400;
// A graph is captured when its shape comes again.
constexpr int kNumTurns = 3;

// The last of two layers has a window.
constexpr char kConfig[] = R"({"model_type": "gemma3_text", "vocab_size": 101, "hidden_size": 24,
    "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 640, "eos_token_id": 2,
    "sliding_window": 200, "layer_types": ["full_attention", "sliding_attention"]})";

// Rows of one request: those that follow its context, a chain or a tree.
struct RequestRows {
  int num_context = 0;
  std::vector<std::int32_t> parents = {};  // of a tree; else empty
  int num_rows = 1;
  std::vector<BlockId> table = {};
};

// One model on one GPU, with graphs or without.
class Model {
 public:
  Model(const ModelDirectory& directory, const ModelSpec& spec, bool keeps_passes, DType kv_dtype) {
    Checkpoint checkpoint(directory.path());
    const ModelFormats formats = UniformFormats(DType::kBFloat16);
    model_ = std::make_unique<Transformer>(
        spec, LoadWeights(spec, checkpoint, formats, ops_), ops_,
        TransformerLimits{kMaxRows, kMaxLen, kBlockSize, kNumBlocks, kMaxRows, kv_dtype, kMaxRows,
                          keeps_passes});
  }

  std::vector<float> Forward(const std::vector<TokenId>& tokens,
                             const std::vector<SequenceRows>& sequences) {
    std::vector<std::int32_t> wanted(tokens.size());
    std::iota(wanted.begin(), wanted.end(), 0);
#ifdef FORERUN_EMULATED_GPU
    const Costs before = CostsUntilNow();
#endif
    const ConstRows logits = model_->Forward({tokens, sequences, wanted});
#ifdef FORERUN_EMULATED_GPU
    const Costs after = CostsUntilNow();
    costs_ = {after.graph_launches - before.graph_launches, after.allocations - before.allocations,
              after.waits - before.waits};
#endif
    std::vector<float> values(wanted.size() * logits.cols);
    EXPECT_EQ(logits.rows, std::ssize(wanted));
    ops_.memory().Download(values.data(), logits.data, values.size() * sizeof(float));
    return values;
  }
  Transformer& transformer() { return *model_; }
  // Of the last pass.
  void ExpectReplayed(bool was_replayed) const {
#ifdef FORERUN_EMULATED_GPU
    EXPECT_EQ(costs_.graph_launches, was_replayed ? 1u : 0u);
    if (!was_replayed) return;
    EXPECT_EQ(costs_.allocations, 0u);
    EXPECT_EQ(costs_.waits, 0u);
#else
    static_cast<void>(was_replayed);
#endif
  }
  std::uint64_t num_graph_launches() const { return costs_.graph_launches; }

 private:
  CudaOps ops_;
  std::unique_ptr<Transformer> model_;
  Costs costs_;
};

class PassGraphsTest : public ::testing::TestWithParam<DType> {
 protected:
  PassGraphsTest()
      : spec_(WriteTinyModel(directory_, kConfig)),
        eager_(directory_, spec_, /*keeps_passes=*/false, GetParam()),
        kept_(directory_, spec_, /*keeps_passes=*/true, GetParam()) {}

  // Both models compute the same context for a request.
  RequestRows MakeRequest(int num_context, int first_block, int max_rows = 30) {
    RequestRows request;
    request.num_context = num_context;
    request.table.resize((num_context + max_rows - 1) / kBlockSize + 1);
    std::iota(request.table.begin(), request.table.end(), first_block);
    if (num_context == 0) return request;
    const std::vector<TokenId> tokens = RandomTokens(num_context);
    for (Model* model : {&eager_, &kept_}) {
      for (int begin = 0; begin < num_context; begin += kMaxRows) {
        const int count = std::min(kMaxRows, num_context - begin);
        const SequenceRows chunk = {0, count, begin, request.table};
        model->transformer().Forward({std::span(tokens).subspan(begin, count), {&chunk, 1}, {}});
      }
    }
    return request;
  }

  std::vector<TokenId> RandomTokens(int count) {
    std::vector<TokenId> tokens;
    for (int i = 0; i < count; ++i) tokens.push_back(random_.Below(spec_.vocab_size));
    return tokens;
  }

  // The rows of the requests in one pass of each model, whose bits must be the same.
  void Compare(const std::vector<RequestRows>& requests) {
    std::vector<SequenceRows> sequences;
    int num_rows = 0;
    for (const RequestRows& request : requests) {
      sequences.push_back({num_rows,
                           request.num_rows,
                           request.num_context,
                           request.table,
                           {request.num_context, request.parents}});
      num_rows += request.num_rows;
    }
    const std::vector<TokenId> tokens = RandomTokens(num_rows);
    const std::vector<float> wanted = eager_.Forward(tokens, sequences);
    const std::vector<float> got = kept_.Forward(tokens, sequences);
    ASSERT_EQ(got.size(), wanted.size());
    ASSERT_EQ(std::memcmp(got.data(), wanted.data(), got.size() * sizeof(float)), 0)
        << num_rows << " rows of " << requests.size() << " requests";
  }

  ModelDirectory directory_;
  ModelSpec spec_;
  Model eager_, kept_;
  TinyRandom random_{11};
};

TEST_P(PassGraphsTest, APassOfAnyNumberOfRowsGivesTheBitsOfOneThatIsNotKept) {
  RequestRows request = MakeRequest(100, 0, kMaxRows);
  // One for each number that passes of up to 64 rows are filled up to; all in the long run.
  std::vector<int> counts = {1, 2, 3, 6, 11, 17, 32, 38, 45, 50, 64};
  if (testing::NumExamples(0, 1) == 1) {
    counts.resize(256);
    std::iota(counts.begin(), counts.end(), 1);
  } else if (!testing::IsPlainBuild()) {
    counts = {5};
  } else if (GetParam() != DType::kBFloat16) {
    counts = {1, 5, 17};
  }
  for (const int count : counts) {
    request.num_rows = count;
    for (int turn = 0; turn < kNumTurns; ++turn) Compare({request});
    kept_.ExpectReplayed(true);
    eager_.ExpectReplayed(false);
  }
  if (!testing::IsPlainBuild()) return;
  request.num_rows = 257;
  for (int turn = 0; turn < kNumTurns; ++turn) Compare({request});
  kept_.ExpectReplayed(false);
}

TEST_P(PassGraphsTest, RequestsOfAnyLengthShareAGraph) {
  std::vector<RequestRows> requests;
  for (const int num_context : {0, 3, 64, 130, 301, 500}) {
    if (!testing::IsPlainBuild() && num_context > 150) break;
    requests.push_back(MakeRequest(num_context, static_cast<int>(requests.size()) * 40));
  }
  int num_replayed = 0;
  for (int round = 0; round < (testing::IsPlainBuild() ? 30 : 12); ++round) {
    std::vector<RequestRows> batch;
    for (const RequestRows& request : requests) {
      if (random_.Below(2) == 0) continue;
      RequestRows& rows = batch.emplace_back(request);
      rows.num_rows = 1 + random_.Below(6);
      if (random_.Below(2) == 0) continue;
      rows.parents =
          testing::RandomParents(rows.num_rows, [&](int limit) { return random_.Below(limit); });
    }
    if (batch.empty()) continue;
    Compare(batch);
    num_replayed += kept_.num_graph_launches() > 0;
  }
#ifdef FORERUN_EMULATED_GPU
  EXPECT_GT(num_replayed, testing::IsPlainBuild() ? 5 : 0);
#endif
}

TEST_P(PassGraphsTest, PaddingTouchesNoBlockOfARequest) {
  constexpr int kNumRequests = 5, kNumContext = 4 * kBlockSize - 1;
  // Every block is a request's.
  for (Model* model : {&eager_, &kept_}) model->transformer().ReserveBlocks(kNumRequests * 4);
  std::vector<RequestRows> requests;
  for (int i = 0; i < kNumRequests; ++i) requests.push_back(MakeRequest(kNumContext, i * 4, 1));
  for (int turn = 0; turn < kNumTurns; ++turn) {
    Compare({requests[0], requests[1], requests[2]});
    Compare(requests);
  }
  kept_.ExpectReplayed(true);
}

TEST_P(PassGraphsTest, ANewCacheNeedsNewGraphs) {
  RequestRows request = MakeRequest(20, 0);
  for (int turn = 0; turn < kNumTurns; ++turn) Compare({request});
  kept_.ExpectReplayed(true);
  for (Model* model : {&eager_, &kept_}) model->transformer().ReserveBlocks(kNumBlocks - 7);
  request = MakeRequest(20, 3);
  Compare({request});
  kept_.ExpectReplayed(false);
  for (int turn = 0; turn < kNumTurns; ++turn) Compare({request});
  kept_.ExpectReplayed(true);
}

// Passes that look up rows of a table.
class CudaPassGraphsTest : public ::testing::Test {
 protected:
  static constexpr int kMostRows = CudaPassGraphs::kMostGraphs + 20;
  static constexpr int kWidth = 16, kNumTokens = 11;

  CudaPassGraphsTest() : tokens_(kMostRows), wanted_(kMostRows) {
    std::iota(wanted_.begin(), wanted_.end(), 0);
    const TensorView tensor = {values_.values.data(), DType::kFloat32, {kNumTokens, kWidth}};
    table_ = ops_.Pack({&tensor, 1}, WeightFormat::kFloat32);
  }

  // Another one each time. Returns what Run does.
  bool Pass(int num_rows) {
    ++num_passes_;
    for (int row = 0; row < num_rows; ++row) tokens_[row] = (num_passes_ + row) % kNumTokens;
    const ForwardRows& rows = ops_.Begin({.tokens = std::span(tokens_).first(num_rows),
                                          .wanted = std::span(wanted_).first(num_rows),
                                          .is_kept = true});
    const Rows some = {out_.view().data, num_rows, kWidth, out_.view().stride};
    const bool was_usual = graphs_.Run([&] {
      ops_.Embed(rows, *table_, 1.0f, some);
      meanwhile_();
    });
    const HostRows found = out_.Download();
    for (int row = 0; row < num_rows; ++row) {
      EXPECT_TRUE(std::equal(found.row(row), found.row(row) + kWidth, values_.row(tokens_[row])))
          << "pass " << num_passes_ << ", row " << row;
    }
    return was_usual;
  }

  CudaOps ops_;
  RandomFloats random_{5};
  const HostRows values_{random_, kNumTokens, kWidth};
  std::unique_ptr<PackedMatrix> table_;
  GpuRows out_{ops_.memory(), kMostRows, kWidth};
  CudaPassGraphs graphs_{ops_};
  std::function<void()> meanwhile_ = [] {};  // during a pass that is launched as it is, or captured
  std::vector<TokenId> tokens_;
  std::vector<std::int32_t> wanted_;
  int num_passes_ = 0;
};

TEST_F(CudaPassGraphsTest, MoreShapesThanAreKeptAreCapturedAgain) {
  for (int turn = 0; turn < (testing::IsPlainBuild() ? kNumTurns : 2); ++turn) {
    for (int num_rows = 1; num_rows <= kMostRows; ++num_rows) EXPECT_FALSE(Pass(num_rows));
  }
  EXPECT_FALSE(Pass(7));
  EXPECT_FALSE(Pass(7));
  EXPECT_TRUE(Pass(7));
}

// As PyTorch captures, in the mode that forbids most.
TEST_F(CudaPassGraphsTest, AnotherThreadsCaptureAndPassesDoNotHarmEachOther) {
  std::promise<void> has_begun, may_end;
  cudaError_t begun = cudaErrorNotReady, ended = cudaErrorNotReady;
  std::thread other([&] {
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    begun = cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    has_begun.set_value();
    may_end.get_future().wait();
    cudaGraph_t graph = nullptr;
    ended = cudaStreamEndCapture(stream, &graph);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  });
  has_begun.get_future().wait();
  // Memory for uploads grows, and graphs are made and replaced.
  EXPECT_NO_THROW({
    for (int num_rows = 1; num_rows <= kMostRows; ++num_rows) {
      for (int i = 0; i < 2; ++i) EXPECT_FALSE(Pass(num_rows));
    }
    EXPECT_TRUE(Pass(kMostRows));
  });
  may_end.set_value();
  other.join();
  EXPECT_EQ(begun, cudaSuccess);
  EXPECT_EQ(ended, cudaSuccess);
}

#ifdef FORERUN_EMULATED_GPU
TEST_F(CudaPassGraphsTest, ACaptureThatAnotherThreadEndsIsTriedAgain) {
  EXPECT_FALSE(Pass(3));
  const Costs before = CostsUntilNow();
  int num_calls = 0;
  meanwhile_ = [&] {
    if (num_calls++ % 2 != 0) return;  // launched as it is, after the capture
    std::thread([] {
      EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorStreamCaptureUnsupported);
    }).join();
  };
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(Pass(3));
  EXPECT_EQ(num_calls, 4);
  EXPECT_EQ(CostsUntilNow().graph_launches, before.graph_launches);
  num_calls = 1;
  EXPECT_FALSE(Pass(3));
  EXPECT_TRUE(Pass(3));
  EXPECT_EQ(CostsUntilNow().graph_launches, before.graph_launches + 2);
  // Not for ever.
  num_calls = 1;
  EXPECT_FALSE(Pass(4));
  num_calls = 0;
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(Pass(4));
  EXPECT_EQ(num_calls, 6);
  num_calls = 1;
  EXPECT_TRUE(Pass(4));
  EXPECT_EQ(num_calls, 2);
}

TEST_F(CudaPassGraphsTest, WhereAGraphIsRefusedPassesGoOnWithout) {
  for (int i = 0; i < 4; ++i) Pass(kMostRows);  // until all memory for uploads is there
  EXPECT_FALSE(Pass(3));
  emulation::options().failing_allocation = 1;
  const Costs before = CostsUntilNow();
  EXPECT_FALSE(Pass(3));
  EXPECT_TRUE(Pass(3));
  EXPECT_EQ(CostsUntilNow().graph_launches, before.graph_launches);
  // Others are captured.
  for (int turn = 0; turn < kNumTurns; ++turn) Pass(4);
  EXPECT_EQ(CostsUntilNow().graph_launches, before.graph_launches + 2);
}

TEST_F(CudaPassGraphsTest, AGraphWithoutMemoryForItsLaunchIsRefused) {
  EXPECT_FALSE(Pass(3));
  emulation::options().failing_launch = 2;  // the first one is of the kernel, into the graph
  emulation::options().launch_error = cudaErrorMemoryAllocation;
  const Costs before = CostsUntilNow();
  EXPECT_FALSE(Pass(3));
  EXPECT_EQ(emulation::options().failing_launch, 0);
  EXPECT_TRUE(Pass(3));
  EXPECT_EQ(CostsUntilNow().graph_launches, before.graph_launches);
}

TEST_F(CudaPassGraphsTest, APassThatFailedWasNotLaunched) {
  emulation::options().failing_launch = 1;
  emulation::options().launch_error = cudaErrorLaunchOutOfResources;
  EXPECT_THROW(Pass(5), DeviceError);
  emulation::options().launch_error = cudaErrorLaunchFailure;
  const Costs before = CostsUntilNow();
  EXPECT_FALSE(Pass(5));
  EXPECT_EQ(CostsUntilNow().graph_launches, before.graph_launches);
  EXPECT_FALSE(Pass(5));
  EXPECT_TRUE(Pass(5));
  EXPECT_EQ(CostsUntilNow().graph_launches, before.graph_launches + 2);
}
#endif

// Kernels of all of them have tests of their own in every build.
std::vector<DType> CacheTypes() {
  if (!testing::IsPlainBuild()) return {DType::kBFloat16};
  return {DType::kBFloat16, DType::kFloat32, DType::kInt8};
}

INSTANTIATE_TEST_SUITE_P(Caches, PassGraphsTest, ::testing::ValuesIn(CacheTypes()),
                         [](const auto& test) { return std::string(Name(test.param)); });

}  // namespace
}  // namespace forerun::cuda
