// What a capture forbids, to its own thread and to others, and what a forbidden call costs it.
#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <vector>

#include "cuda/emulation/emulation.h"
#include "tests/cuda/emulation/device_array.h"
#include "tests/cuda/emulation/sound_kernels.h"

namespace forerun::emulation {
namespace {

constexpr cudaStreamCaptureMode kModes[] = {
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed};

class CapturesTest : public testing::Test {
 protected:
  CapturesTest() : memory_(std::vector<int>(64)) {
    Reset();
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~CapturesTest() override {
    cudaStreamDestroy(stream_);
    Reset();
  }

  // What a call returns during a capture, which is lost where the call is forbidden.
  cudaError_t During(cudaStreamCaptureMode mode, const std::function<cudaError_t()>& call) {
    EXPECT_EQ(cudaStreamBeginCapture(stream_, mode), cudaSuccess);
    EXPECT_EQ(cuda::LaunchFill(memory_.get(), 64, 1, stream_), cudaSuccess);
    const cudaError_t status = call();
    const bool is_forbidden = status == cudaErrorStreamCaptureUnsupported;
    EXPECT_EQ(cuda::LaunchFill(memory_.get(), 64, 2, stream_),
              is_forbidden ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph),
              is_forbidden ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
    EXPECT_EQ(graph == nullptr, is_forbidden);
    cudaGraphDestroy(graph);
    return status;
  }

  cudaStream_t stream_ = nullptr;
  DeviceArray<int> memory_;
};

cudaError_t OnAnotherThread(const std::function<cudaError_t()>& call) {
  cudaError_t status = cudaSuccess;
  std::thread([&] { status = call(); }).join();
  return status;
}

// The mode is the thread's own again afterwards.
cudaError_t InMode(cudaStreamCaptureMode mode, const std::function<cudaError_t()>& call) {
  EXPECT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaSuccess);
  const cudaError_t status = call();
  EXPECT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaSuccess);
  return status;
}

cudaError_t Allocate() {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, 8);
  return status == cudaSuccess ? cudaFree(memory) : status;
}

TEST_F(CapturesTest, TheModesOfTheCaptureAndOfTheThreadDecide) {
  for (const cudaStreamCaptureMode of_capture : kModes) {
    for (const cudaStreamCaptureMode of_thread : kModes) {
      SCOPED_TRACE(testing::Message() << of_capture << ", " << of_thread);
      const auto allocate = [&] { return InMode(of_thread, Allocate); };
      const bool is_own_forbidden =
          of_capture != cudaStreamCaptureModeRelaxed && of_thread != cudaStreamCaptureModeRelaxed;
      EXPECT_EQ(During(of_capture, allocate),
                is_own_forbidden ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
      const bool is_others_forbidden =
          of_capture == cudaStreamCaptureModeGlobal && of_thread == cudaStreamCaptureModeGlobal;
      EXPECT_EQ(During(of_capture, [&] { return OnAnotherThread(allocate); }),
                is_others_forbidden ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
    }
  }
}

TEST_F(CapturesTest, EveryWaitAndQueryIsUnsafe) {
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event), cudaSuccess);
  int value = 0;
  void* pinned = nullptr;
  const std::function<cudaError_t()> calls[] = {
      [&] { return cudaStreamSynchronize(nullptr); },
      [&] { return cudaEventSynchronize(event); },
      [&] { return cudaEventQuery(event); },
      [&] { return cudaStreamQuery(nullptr); },
      [&] { return cudaMemcpy(&value, memory_.get(), sizeof value, cudaMemcpyDeviceToHost); },
      [&] { return cudaMemset(memory_.get(), 0, sizeof value); },
      [&] { return cudaMallocHost(&pinned, 8); },
  };
  for (const auto& call : calls) {
    EXPECT_EQ(During(cudaStreamCaptureModeThreadLocal, call), cudaErrorStreamCaptureUnsupported);
    const auto elsewhere = [&] { return OnAnotherThread(call); };
    EXPECT_EQ(During(cudaStreamCaptureModeGlobal, elsewhere), cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(During(cudaStreamCaptureModeThreadLocal, elsewhere), cudaSuccess);
  }
  cudaFreeHost(pinned);
  cudaEventDestroy(event);
}

TEST_F(CapturesTest, NoThreadMayWaitForTheDeviceOrTheCapturedStream) {
  for (const cudaStreamCaptureMode mode : kModes) {
    for (const auto& wait : {std::function<cudaError_t()>(cudaDeviceSynchronize),
                             std::function([&] { return cudaStreamSynchronize(stream_); }),
                             std::function([&] { return cudaStreamQuery(stream_); })}) {
      const auto elsewhere = [&] {
        return OnAnotherThread([&] { return InMode(cudaStreamCaptureModeRelaxed, wait); });
      };
      EXPECT_EQ(During(mode, elsewhere), cudaErrorStreamCaptureUnsupported);
    }
  }
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(CapturesTest, AModeIsOneOfThree) {
  auto mode = static_cast<cudaStreamCaptureMode>(3);
  EXPECT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaErrorInvalidValue);
  EXPECT_EQ(cudaThreadExchangeStreamCaptureMode(nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace forerun::emulation
