// What the host does wrong: launches, copies, streams, captures. Every build finds these.
#include <numeric>

#include "tests/cuda/emulation/planted_errors.h"
#include "tests/cuda/emulation/sound_kernels.h"

namespace forerun::cuda {
namespace {

constexpr FoundBy Always(const char* message) { return {message, message, message}; }
constexpr FoundBy ByDeath(const char* asan) {
  return {.asan = asan, .by_death_in_plain_and_race = true, .by_death_in_asan = true};
}

__global__ void Nothing() {}

// Streams that run nothing until they must.
class LazyStreams {
 public:
  LazyStreams() {
    emulation::options().lazy_streams = true;
    cudaStreamCreate(&first);
    cudaStreamCreate(&second);
  }
  ~LazyStreams() {
    cudaStreamDestroy(first);
    cudaStreamDestroy(second);
  }
  cudaStream_t first, second;
};

std::string Wrong(bool is_right) { return is_right ? "" : "the host reads something else"; }

std::string CopyUsedBeforeWait(bool waits_for_another) {
  const LazyStreams streams;
  const Scratch out(256);
  std::vector<int> host(64);
  LaunchFill(out.get(), 64, 5, streams.first);
  cudaMemcpyAsync(host.data(), out.get(), 256, cudaMemcpyDeviceToHost, streams.first);
  if (waits_for_another) cudaStreamSynchronize(streams.second);
  const bool is_right = host[3] == 5;
  cudaStreamSynchronize(streams.first);
  return Wrong(is_right);
}

std::string StagingBufferReused() {
  const LazyStreams streams;
  const Scratch in(256);
  std::vector<int> staging(64, 5), host(64);
  cudaMemcpyAsync(in.get(), staging.data(), 256, cudaMemcpyHostToDevice, streams.first);
  std::iota(staging.begin(), staging.end(), 0);
  cudaMemcpyAsync(host.data(), in.get(), 256, cudaMemcpyDeviceToHost, streams.first);
  cudaStreamSynchronize(streams.first);
  return Wrong(host == std::vector<int>(64, 5));
}

std::string StagingBufferFreed() {
  const LazyStreams streams;
  const Scratch in(256);
  void* staging = nullptr;
  cudaMallocHost(&staging, 256);
  cudaMemcpyAsync(in.get(), staging, 256, cudaMemcpyHostToDevice, streams.first);
  cudaFreeHost(staging);
  return NameOf(cudaStreamSynchronize(streams.first));
}

std::string StreamsNotOrdered() {
  const LazyStreams streams;
  const Scratch out(256);
  std::vector<int> host(64);
  LaunchFill(out.get(), 64, 5, streams.first);
  cudaMemcpyAsync(host.data(), out.get(), 256, cudaMemcpyDeviceToHost, streams.second);
  cudaStreamSynchronize(streams.second);
  return Wrong(host[3] == 5);
}

std::string EventRecordedTooEarly() {
  const LazyStreams streams;
  const Scratch out(256);
  std::vector<int> host(64);
  cudaEvent_t event;
  cudaEventCreate(&event);
  cudaEventRecord(event, streams.first);
  LaunchFill(out.get(), 64, 5, streams.first);
  cudaMemcpyAsync(host.data(), out.get(), 256, cudaMemcpyDeviceToHost, streams.first);
  cudaEventSynchronize(event);
  const bool is_right = host[3] == 5;
  cudaStreamSynchronize(streams.first);
  cudaEventDestroy(event);
  return Wrong(is_right);
}

std::string FreedTwice() {
  int* memory = nullptr;
  cudaMalloc(&memory, 8);
  cudaFree(memory);
  return NameOf(cudaFree(memory));
}

// What `call` returns while a stream is captured.
template <class Call>
std::string WhileCapturing(Call call) {
  cudaStream_t stream;
  cudaGraph_t graph = nullptr;
  cudaStreamCreate(&stream);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  const cudaError_t error = call(stream);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return NameOf(error);
}

}  // namespace

std::vector<PlantedError> PlantedHostErrors() {
  return {
      {"TooManyThreads", Always("cudaErrorInvalidConfiguration"),
       [] { return Run(1, 1025, 0, Nothing); }},
      {"BlockTooDeep", Always("cudaErrorInvalidConfiguration"),
       [] { return Run(1, dim3(1, 1, 65), 0, Nothing); }},
      {"NoBlocks", Always("cudaErrorInvalidConfiguration"), [] { return Run(0, 32, 0, Nothing); }},
      {"GridTooHigh", Always("cudaErrorInvalidConfiguration"),
       [] { return Run(dim3(1, 65536), 32, 0, Nothing); }},
      {"DynamicSharedNotAskedFor", Always("cudaErrorInvalidValue"),
       [] { return Run(1, 32, 49 << 10, Nothing); }},
      {"DynamicSharedBeyondChip", Always("cudaErrorInvalidValue"),
       [] {
         return NameOf(
             cudaFuncSetAttribute(Nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10));
       }},
      {"HostReadsDeviceMemory", ByDeath("SEGV"),
       [] {
         const Scratch memory(256);
         return std::to_string(*memory.get<volatile int>());
       }},
      {"HostWritesDeviceMemory", ByDeath("SEGV"),
       [] {
         const Scratch memory(256);
         *memory.get<volatile int>() = 1;
         return std::string();
       }},
      {"CopyInWrongDirection", Always("cudaErrorInvalidValue"),
       [] {
         const Scratch memory(256);
         int host[64] = {};
         return NameOf(cudaMemcpy(memory.get(), host, 256, cudaMemcpyDeviceToHost));
       }},
      {"CopyBeyondAllocation", Always("cudaErrorInvalidValue"),
       [] {
         const Scratch memory(252);
         int host[64] = {};
         return NameOf(cudaMemcpy(memory.get(), host, 256, cudaMemcpyHostToDevice));
       }},
      {"FreedTwice", Always("cudaErrorInvalidValue"), FreedTwice},
      {"CopyUsedBeforeWait", Always("the host reads something else"),
       [] { return CopyUsedBeforeWait(/*waits_for_another=*/false); }},
      {"WaitForAnotherStream", Always("the host reads something else"),
       [] { return CopyUsedBeforeWait(/*waits_for_another=*/true); }},
      {"StagingBufferReused", Always("the host reads something else"), StagingBufferReused},
      {"StagingBufferFreed", Always("found its pinned memory freed"), StagingBufferFreed},
      {"StreamsNotOrdered", Always("the host reads something else"), StreamsNotOrdered},
      {"EventRecordedTooEarly", Always("the host reads something else"), EventRecordedTooEarly},
      {"UseOfDestroyedStream", Always("cudaErrorInvalidResourceHandle"),
       [] {
         cudaStream_t stream;
         cudaStreamCreate(&stream);
         cudaStreamDestroy(stream);
         return NameOf(cudaStreamSynchronize(stream));
       }},
      {"WaitWhileCapturing", Always("cudaErrorStreamCaptureUnsupported"),
       [] { return WhileCapturing([](cudaStream_t s) { return cudaStreamSynchronize(s); }); }},
      {"AllocationWhileCapturing", Always("cudaErrorStreamCaptureUnsupported"),
       [] {
         return WhileCapturing([](cudaStream_t) {
           void* memory = nullptr;
           return cudaMalloc(&memory, 8);
         });
       }},
  };
}

}  // namespace forerun::cuda
