// Tensors whose elements are still being written when they are verified, on a stream of the
// caller's that the default stream does not wait for.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "cpp/sampling/sampler.h"
#include "cuda/library/tensor_verifier.h"
#include "cuda/verify/step_buffer.h"
#include "tests/cuda/verify/lazy_streams.h"
#include "tests/cuda/verify/random_step.h"

namespace forerun::cuda {
namespace {

constexpr int kVocabSize = 70, kNumRequests = 2, kNumDrafted = 3;
constexpr int kNumRows = kNumRequests * (1 + kNumDrafted);

// Drafts that these logits accept, and hardly any others.
struct Step {
  explicit Step(unsigned seed) : logits(kNumRows * kVocabSize) {
    testing::RandomNumbers random(seed);
    for (float& logit : logits) logit = random.Normal();
    SamplerScratch scratch;
    for (int i = 0; i < kNumRequests; ++i) {
      for (int node = 0; node < kNumDrafted; ++node) {
        const int row = i * (1 + kNumDrafted) + node;
        const std::span values(logits.data() + row * kVocabSize, kVocabSize);
        drafts[i].AppendToChain(SampleToken(values, rule, node, scratch), 1.0f);
      }
      requests.push_back({.draft = &drafts[i], .rule = &rule});
    }
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  ConstRows rows() const { return {logits.data(), kNumRows, kVocabSize, kVocabSize}; }

  const SamplingRule rule = {.seed = 3};
  std::vector<float> logits;
  std::array<DraftTree, kNumRequests> drafts;
  std::vector<SampleRequest> requests;
};

// A tensor on a stream of its own.
class Tensor {
 public:
  explicit Tensor(int col_stride)
      : col_stride_(col_stride),
        row_stride_(col_stride * kVocabSize + 3),
        values_(kNumRows * row_stride_, std::numeric_limits<float>::quiet_NaN()),
        memory_(values_.size() * sizeof(float)) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~Tensor() { cudaStreamDestroy(stream_); }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  // Waits for nothing. The tensor, to be used before the next call.
  DeviceTensor Write(const Step& step) {
    for (int i = 0; i < kNumRows * kVocabSize; ++i) {
      values_[i / kVocabSize * row_stride_ + i % kVocabSize * col_stride_] = step.logits[i];
    }
    EXPECT_EQ(cudaMemcpyAsync(memory_.data(), values_.data(), values_.size() * sizeof(float),
                              cudaMemcpyHostToDevice, stream_),
              cudaSuccess);
    return {memory_.data(), DType::kFloat32, kNumRows, kVocabSize,
            row_stride_,    col_stride_,     stream_};
  }

 private:
  const int col_stride_, row_stride_;
  std::vector<float> values_;
  const DeviceBuffer memory_;
  cudaStream_t stream_ = nullptr;
};

// By the strides between columns: 1 is read as it is, of others a dense copy.
class TensorStreamsTest : public ::testing::TestWithParam<int> {
 protected:
  const testing::LazyStreams lazy_;
  const Step steps_[2] = {Step(1), Step(2)};
  Tensor tensor_{GetParam()};
  const std::unique_ptr<TensorVerifier> gpu_ = OpenTensorVerifier();
  HostVerifier host_{
      {.vocab_size = kVocabSize, .max_requests = kNumRequests, .max_rows = kNumRows}};
};
INSTANTIATE_TEST_SUITE_P(, TensorStreamsTest, ::testing::Values(1, 2));

constexpr int kTurns[] = {0, 1, 0, 1};  // the values of the turn before are still there

TEST_P(TensorStreamsTest, VerifiesAfterWorkOnTheStream) {
  for (int turn : kTurns) {
    const Step& step = steps_[turn];
    host_.Begin(step.rows(), step.requests);
    const std::span<const Outcome> expected = host_.Finish();
    const std::span<const Outcome> found = gpu_->Verify(tensor_.Write(step), step.requests);
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(found[i].verdict.num_accepted(), kNumDrafted);
      EXPECT_EQ(found[i].verdict.tokens, expected[i].verdict.tokens);
      EXPECT_EQ(found[i].error, "");
    }
  }
}

TEST_P(TensorStreamsTest, FindsTheTopAfterWorkOnTheStream) {
  constexpr int kCount = 4;
  for (int turn : kTurns) {
    std::vector<TopToken> expected(kNumRows * kCount), found(kNumRows * kCount);
    host_.Top(steps_[turn].rows(), kCount, expected);
    gpu_->Top(tensor_.Write(steps_[turn]), kCount, found);
    EXPECT_EQ(found, expected);
  }
}

TEST_P(TensorStreamsTest, DownloadsAfterWorkOnTheStream) {
  for (int turn : kTurns) {
    std::vector<float> found(kNumRows * kVocabSize);
    gpu_->Download(tensor_.Write(steps_[turn]), found.data());
    EXPECT_EQ(found, steps_[turn].logits);
  }
}

}  // namespace
}  // namespace forerun::cuda
