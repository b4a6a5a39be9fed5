// Streams, events, graphs and pinned memory, and what a machine without a usable GPU reports.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/emulation/emulation.h"
#include "tests/cuda/emulation/device_array.h"
#include "tests/cuda/emulation/sound_kernels.h"

extern "C" const char* forerun_emulation_configure(const char* words);
extern "C" std::int64_t forerun_emulation_counter(const char* name);
extern "C" void forerun_emulation_reset();

namespace forerun::emulation {
namespace {

class EmulatedRuntimeTest : public testing::Test {
 protected:
  void SetUp() override { Reset(); }
  void TearDown() override { Reset(); }
};

class Stream {
 public:
  Stream() { EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess); }
  ~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { EXPECT_EQ(cudaEventCreate(&event_), cudaSuccess); }
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

TEST_F(EmulatedRuntimeTest, LazyWorkIsDoneByItsWaitAndNotBefore) {
  options().lazy_streams = true;
  const Stream stream;
  const DeviceArray<int> out(64);
  const Event event;
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 64 * sizeof(int)), cudaSuccess);
  ASSERT_EQ(cuda::LaunchFill(out.get(), 64, 5, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned, out.get(), 256, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  ASSERT_EQ(cuda::LaunchFill(out.get(), 64, 6, stream), cudaSuccess);
  EXPECT_EQ(counters().launches, 0u);
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(pinned[63], 5);
  EXPECT_EQ(counters().launches, 1u);
  while (cudaStreamQuery(stream) == cudaErrorNotReady) continue;
  EXPECT_EQ(counters().launches, 2u);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(EmulatedRuntimeTest, AnEventOrdersTwoStreams) {
  options().lazy_streams = true;
  const Stream first, second;
  const DeviceArray<int> out(64);
  const Event event;
  std::vector<int> host(64);
  ASSERT_EQ(cuda::LaunchFill(out.get(), 64, 5, first), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(second, event), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(host.data(), out.get(), 256, cudaMemcpyDeviceToHost, second),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(host, std::vector<int>(64, 5));
}

TEST_F(EmulatedRuntimeTest, EventsMeasureTheSetDuration) {
  options().launch_us = 250;
  const Stream stream;
  const DeviceArray<int> out(64);
  const Event begin, end;
  ASSERT_EQ(cudaEventRecord(begin, stream), cudaSuccess);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(cuda::LaunchFill(out.get(), 64, i, stream), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(end, stream), cudaSuccess);
  float milliseconds = 0;
  ASSERT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaSuccess);
  EXPECT_EQ(milliseconds, 1.0f);
}

TEST_F(EmulatedRuntimeTest, AGraphKeepsTheArgumentsOfItsCapture) {
  const Stream stream;
  const DeviceArray<int> out(64);
  std::vector<int> host(64, -1);
  int value = 1;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  ASSERT_EQ(cuda::LaunchFill(out.get(), 64, value, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(host.data(), out.get(), 256, cudaMemcpyDeviceToHost, stream),
            cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
  EXPECT_EQ(counters().launches, 0u);
  EXPECT_EQ(host[0], -1);
  value = 2;
  for (int replay = 0; replay < 2; ++replay) {
    host.assign(64, -1);
    ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(host, std::vector<int>(64, 1));
  }
  EXPECT_EQ(counters().launches, 2u);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

TEST_F(EmulatedRuntimeTest, EveryHostThreadMayLaunch) {
  const DeviceArray<int> out(64);
  const auto launch = [&](int value) {
    ASSERT_EQ(cuda::LaunchFill(out.get(), 64, value, nullptr), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
    EXPECT_THROW(throw Error("on this thread"), Error);
  };
  launch(1);
  std::thread(launch, 2).join();
  launch(3);
  EXPECT_EQ(out.Download()[63], 3);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int repeat = 0; repeat < 25; ++repeat) launch(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(EmulatedRuntimeTest, TellsWhereAPointerPoints) {
  const DeviceArray<int> device(4);
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 16), cudaSuccess);
  int host = 0;
  cudaPointerAttributes attributes;
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, device.get() + 3), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, device.get() + 4), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, pinned), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, &host), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

// ---- What a machine reports

TEST_F(EmulatedRuntimeTest, WithoutADriverEveryCallFails) {
  options().driver_version = 0;
  int version = -1, count = -1;
  EXPECT_EQ(cudaDriverGetVersion(&version), cudaSuccess);
  EXPECT_EQ(version, 0);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  EXPECT_EQ(count, 0);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 8), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(EmulatedRuntimeTest, ADriverMayBeTooOldOrWithoutDevice) {
  options().driver_version = 12080;
  int count = -1;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  options().driver_version = 13000;
  options().num_devices = 0;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  options().num_devices = 1;
  options().start_error = cudaErrorSystemNotReady;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorSystemNotReady);
}

TEST_F(EmulatedRuntimeTest, OnlyTheFirstDeviceCanBeUsedAndEachThreadHasItsOwn) {
  options().num_devices = 2;
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  int device = -1;
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 1);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 8), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorInvalidDevice);
  std::thread([&] { EXPECT_EQ(cudaGetDevice(&device), cudaSuccess); }).join();
  EXPECT_EQ(device, 0);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
}

TEST_F(EmulatedRuntimeTest, AnOldChipHasNoKernels) {
  const DeviceArray<int> out(64);
  options().capability = 75;
  cudaDeviceProp properties;
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  EXPECT_EQ(properties.major, 7);
  EXPECT_EQ(properties.minor, 5);
  EXPECT_EQ(cuda::LaunchFill(out.get(), 64, 1, nullptr), cudaErrorNoKernelImageForDevice);
}

TEST_F(EmulatedRuntimeTest, MemoryEndsAndOneAllocationCanFail) {
  options().memory_bytes = 10000;
  std::size_t free_before = 0, free_after = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  EXPECT_EQ(total, 10000u);
  {
    const DeviceArray<char> first(6000);
    ASSERT_EQ(cudaMemGetInfo(&free_after, &total), cudaSuccess);
    EXPECT_EQ(free_before - free_after, 6000u);
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, 6000), cudaErrorMemoryAllocation);
    EXPECT_EQ(memory, nullptr);
  }
  const DeviceArray<char> second(6000);
  options().failing_allocation = 2;
  void *one = nullptr, *two = nullptr, *three = nullptr;
  EXPECT_EQ(cudaMalloc(&one, 8), cudaSuccess);
  EXPECT_EQ(cudaMallocHost(&two, 8), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMallocHost(&three, 8), cudaSuccess);
  EXPECT_EQ(cudaFree(one), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(three), cudaSuccess);
}

TEST_F(EmulatedRuntimeTest, ALaunchThatRunsOutOfResourcesFailsAlone) {
  const DeviceArray<int> out(64);
  options().failing_launch = 2;
  options().launch_error = cudaErrorLaunchOutOfResources;
  EXPECT_EQ(cuda::LaunchFill(out.get(), 64, 1, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::LaunchFill(out.get(), 64, 2, nullptr), cudaErrorLaunchOutOfResources);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(out.Download()[0], 1);
}

TEST_F(EmulatedRuntimeTest, AKernelThatFailsIsReportedByTheWaitAndLosesTheDevice) {
  {
    const DeviceArray<int> out(std::vector<int>(64, 7));
    options().failing_launch = 1;
    EXPECT_EQ(cuda::LaunchFill(out.get(), 64, 1, nullptr), cudaSuccess);
    EXPECT_EQ(cuda::LaunchFill(out.get(), 64, 2, nullptr), cudaSuccess);
    EXPECT_EQ(counters().launches, 0u);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    EXPECT_EQ(cuda::LaunchFill(out.get(), 64, 3, nullptr), cudaErrorLaunchFailure);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
  }
  Reset();
  const DeviceArray<int> out(64);
  EXPECT_EQ(cuda::LaunchFill(out.get(), 64, 4, nullptr), cudaSuccess);
  EXPECT_EQ(out.Download()[0], 4);
}

TEST_F(EmulatedRuntimeTest, OptionsAreSetByWords) {
  Configure(
      "order=random seed=3  lazy_streams=1 memory_mib=2 launch_us=1.5 block_us=0.5 "
      "launch_error=701 start_error=802");
  EXPECT_EQ(options().order, Order::kRandom);
  EXPECT_EQ(options().seed, 3u);
  EXPECT_TRUE(options().lazy_streams);
  EXPECT_EQ(options().memory_bytes, 2u << 20);
  EXPECT_EQ(options().launch_us, 1.5);
  EXPECT_EQ(options().block_us, 0.5);
  EXPECT_EQ(options().launch_error, cudaErrorLaunchOutOfResources);
  EXPECT_EQ(options().start_error, cudaErrorSystemNotReady);
  Configure(
      "capability=80 driver_version=12000 num_devices=0 failing_allocation=4 failing_launch=5");
  EXPECT_EQ(options().capability, 80);
  EXPECT_EQ(options().driver_version, 12000);
  EXPECT_EQ(options().num_devices, 0);
  EXPECT_EQ(options().failing_allocation, 4);
  EXPECT_EQ(options().failing_launch, 5);
}

TEST_F(EmulatedRuntimeTest, AWordThatIsNotValidNamesWhatIs) {
  for (const auto& [words, message] : std::vector<std::pair<const char*, const char*>>{
           {"seed=5 order=sideways", "'order=sideways': order is forward, depth_first"},
           {"seed=5 seed=-1", "'seed=-1': seed is a number from 0"},
           {"seed=5 capability=9x", "'capability=9x'"},
           {"seed=5 lazy_streams=2", "lazy_streams is 0 or 1"},
           {"seed=5 launch_error=1", "launch_error is 2, 700, 701 or 719"},
           {"seed=5 speed=3", "'speed=3' is not a name=value with one of the names order, seed"},
           {"seed=5 seed", "'seed'"}}) {
    const char* const found = forerun_emulation_configure(words);
    ASSERT_NE(found, nullptr) << words;
    EXPECT_NE(std::string(found).find(message), std::string::npos) << found;
    EXPECT_EQ(options().seed, 1u) << words;
  }
  EXPECT_EQ(forerun_emulation_configure("seed=5"), nullptr);
  EXPECT_EQ(options().seed, 5u);
}

TEST_F(EmulatedRuntimeTest, CountersAreReadByName) {
  const DeviceArray<int> array(std::vector<int>(10, 3));
  EXPECT_EQ(forerun_emulation_counter("bytes_to_device"), 40);
  EXPECT_EQ(forerun_emulation_counter("waits"), 1);
  EXPECT_EQ(forerun_emulation_counter("allocations"), 1);
  EXPECT_EQ(forerun_emulation_counter("bytes_to_nowhere"), -1);
  forerun_emulation_reset();
  EXPECT_EQ(forerun_emulation_counter("bytes_to_device"), 0);
}

}  // namespace
}  // namespace forerun::emulation
