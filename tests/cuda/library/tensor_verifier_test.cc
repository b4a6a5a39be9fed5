// Verification in tensors of other libraries, on threads that chose another GPU and with too little
// memory.
#include "cuda/library/tensor_verifier.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/emulation/emulation.h"
#include "cuda/gpu_memory.h"
#include "cuda/library/gpu.h"
#include "forerun/error.h"

namespace forerun::cuda {
namespace {

constexpr int kVocabSize = 8;

class GpuTensorVerifierTest : public ::testing::Test {
 protected:
  void SetUp() override { emulation::Reset(); }
  void TearDown() override {
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    emulation::Reset();
  }

  // Greedy requests without drafts; the first token of the row i is i % kVocabSize.
  void ExpectVerified(TensorVerifier& verifier, int num_requests) {
    std::vector<float> values(static_cast<std::size_t>(num_requests) * kVocabSize, 0.0f);
    std::vector<SampleRequest> requests(num_requests, {.draft = &draft_, .rule = &rule_});
    for (int i = 0; i < num_requests; ++i) values[i * kVocabSize + i % kVocabSize] = 1.0f;
    void* const data = verifier.Upload(std::as_bytes(std::span(values)));
    const DeviceTensor logits = {
        .data = data, .rows = num_requests, .cols = kVocabSize, .row_stride = kVocabSize};
    try {
      const std::span<const Outcome> outcomes = verifier.Verify(logits, requests);
      for (int i = 0; i < num_requests; ++i) {
        EXPECT_EQ(outcomes[i].verdict.tokens, std::vector<TokenId>{i % kVocabSize});
      }
    } catch (...) {
      verifier.Free(data);
      throw;
    }
    verifier.Free(data);
  }

  const DraftTree draft_;
  const SamplingRule rule_ = {.temperature = 0.0};
};

TEST_F(GpuTensorVerifierTest, ACallersGpuIsNeitherUsedNorChanged) {
  emulation::options().num_devices = 2;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  void* other = nullptr;
  ASSERT_EQ(cudaMalloc(&other, 8), cudaErrorInvalidDevice);  // so a call that used it would throw
  const auto expect_unchanged = [] {
    int device = -1;
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(device, 1);
  };

  const std::unique_ptr<TensorVerifier> verifier = OpenTensorVerifier();
  expect_unchanged();
  ExpectVerified(*verifier, 3);
  expect_unchanged();

  const std::vector<float> values = {0.0f, 2.0f, 1.0f, 0.0f};
  void* const data = verifier->Upload(std::as_bytes(std::span(values)));
  const DeviceTensor tensor = {.data = data, .rows = 1, .cols = 4, .row_stride = 4};
  std::vector<TopToken> top(1);
  verifier->Top(tensor, 1, top);
  EXPECT_EQ(top[0].token, 1);
  std::vector<float> back(4, std::numeric_limits<float>::quiet_NaN());
  verifier->Download(tensor, back.data());
  EXPECT_EQ(back, values);
  verifier->Free(data);
  expect_unchanged();
}

TEST_F(GpuTensorVerifierTest, AnEnginesGpuIsUsedOnThreadsWithAnother) {
  emulation::options().num_devices = 2;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  const std::unique_ptr<Device> gpu = OpenGpu();
  EXPECT_GT(gpu->memory_size().free, 0);
  const std::vector<float> row = {0.0f, 2.0f, 1.0f, 0.0f};
  const AlignedBuffer logits(gpu->memory(), sizeof(float) * row.size());
  gpu->memory().Upload(logits.as<float>(), row.data(), sizeof(float) * row.size());
  const std::unique_ptr<Verifier> verifier =
      gpu->MakeVerifier({.vocab_size = 4, .max_requests = 1, .max_rows = 1});
  const SampleRequest request = {.draft = &draft_, .rule = &rule_};
  verifier->Begin({logits.as<float>(), 1, 4, 4}, std::span(&request, 1));
  EXPECT_EQ(verifier->Finish()[0].verdict.tokens, std::vector<TokenId>{1});
  int device = -1;
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 1);
}

TEST_F(GpuTensorVerifierTest, WithoutMemoryForRoomToGrowItTakesWhatIsNeeded) {
  for (int failing = 1; failing <= 2; ++failing) {  // GPU memory, pinned memory
    const std::unique_ptr<TensorVerifier> verifier = OpenTensorVerifier();
    ExpectVerified(*verifier, 4);
    emulation::options().failing_allocation = 1 + failing;  // the first is that of the logits
    ExpectVerified(*verifier, 5);
    EXPECT_EQ(emulation::options().failing_allocation, 0);
    ExpectVerified(*verifier, 5);
  }
}

TEST_F(GpuTensorVerifierTest, WhatItTakesDoesNotGrowWithFailures) {
  const std::unique_ptr<TensorVerifier> verifier = OpenTensorVerifier();
  ExpectVerified(*verifier, 4);
  std::size_t num_free = 0, num_total = 0;
  ASSERT_EQ(cudaMemGetInfo(&num_free, &num_total), cudaSuccess);
  emulation::options().memory_bytes =
      num_total - num_free + 100'000;  // enough for the logits alone
  for (int i = 0; i < 40; ++i) EXPECT_THROW(ExpectVerified(*verifier, 2000), DeviceError);
  emulation::options().memory_bytes = num_total;
  ExpectVerified(*verifier, 2000);
}

}  // namespace
}  // namespace forerun::cuda
