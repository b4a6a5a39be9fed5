// Accesses that nothing orders, and reads of what nothing wrote. The race build finds them in every
// order; some show in the plain build, as results that depend on the order.
#include <cuda_bf16.h>

#include "cuda/emulation/in_every_order.h"
#include "cuda/emulation/instructions.h"
#include "tests/cuda/emulation/planted_errors.h"

namespace forerun::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

constexpr FoundBy InRaceBuild(const char* message) { return {.race = message}; }
constexpr FoundBy InOrdersAndRaceBuild(const char* message) {
  return {.plain = "depends on the order", .race = message};
}

__device__ int Thread() { return static_cast<int>(threadIdx.x); }

__global__ void MissingBarrier(int* out) {
  __shared__ int tile[64];
  tile[Thread()] = 0;
  __syncthreads();
  tile[Thread()] = Thread();
  out[Thread()] = tile[63 - Thread()];
}
__global__ void MissingBarrierBeforeReuse(int* out) {
  __shared__ int tile[64];
  tile[Thread()] = Thread();
  __syncthreads();
  const int other = tile[63 - Thread()];
  tile[Thread()] = other + 1;
  __syncthreads();
  out[Thread()] = tile[Thread()];
}
__global__ void ShuffleTakenForFence(int* out) {
  __shared__ int tile[32];
  tile[Thread()] = 1;
  __shfl_sync(kAllLanes, 0, 0);
  out[Thread()] = tile[31 - Thread()];
}
__global__ void SyncwarpOfHalvesTakenForWhole(int* out) {
  __shared__ int tile[32];
  tile[Thread()] = 0;
  __syncthreads();
  tile[Thread()] = 1;
  __syncwarp(threadIdx.x < 16 ? 0xffffu : 0xffff0000u);
  out[Thread()] = tile[31 - Thread()];
}
__global__ void SyncwarpTakenForBarrier(int* out) {
  __shared__ int tile[64];
  tile[Thread()] = 0;
  __syncthreads();
  tile[Thread()] = 1;
  __syncwarp();
  out[Thread()] = tile[63 - Thread()];
}
__global__ void AllLanesWriteOneWord(int* out) {
  __shared__ int word;
  word = 5;
  __syncthreads();
  out[Thread()] = word;
}
__global__ void TwoThreadsWriteOutput(int* out) {
  if (threadIdx.x < 2) out[0] = 5;
}
__global__ void BlocksWriteOneWord(int* out) { out[Thread()] = static_cast<int>(blockIdx.x); }
__global__ void ReadsWhatAnotherThreadUpdates(int* out) {
  const int next = out[(Thread() + 1) % 64];
  out[Thread()] = next + Thread();
}
__global__ void ReadsWhatAnotherBlockWrites(int* out) {
  if (blockIdx.x == 0) {
    out[0] = 5;
  } else {
    out[1] = out[0] + 1;
  }
}
__global__ void TwoThreadsWriteOneHalfWord(__nv_bfloat16* out) {
  out[Thread() / 2] = __float2bfloat16(1.0f);
}
__global__ void AtomicAgainstStore(int* out) {
  atomicAdd(out, 1);
  if (threadIdx.x == 40) out[0] = 0;
}
__global__ void CounterWithoutAtomic(int* out) { out[0] = out[0] + 1; }
__global__ void ThirdReaderOfWarp(int* out) {
  __shared__ int word;
  if (threadIdx.x == 0) word = 1;
  __syncthreads();
  if (threadIdx.x < 3) out[Thread()] = word;
  __syncwarp(threadIdx.x == 2 ? 4u : ~4u);
  if (threadIdx.x == 3) word = 2;
}
__global__ void UninitialisedShared(int* out) {
  __shared__ int tile[64];
  if (threadIdx.x != 9) tile[Thread()] = 1;
  __syncthreads();
  out[Thread()] = tile[Thread()];
}
__global__ void UninitialisedDynamicShared(int* out) {
  out[Thread()] = static_cast<int*>(emulation::DynamicShared())[Thread()];
}
__global__ void SharedOfEarlierBlock(int* out) {
  __shared__ int word;
  if (blockIdx.x == 0 || gridDim.x == 1) word = 3;
  out[blockIdx.x] = word;
}
__global__ void ReadsAll(int* out, const int* in) { out[Thread()] = in[Thread()]; }
__global__ void CopyUsedWithoutWait(int* out, const int* in) {
  __shared__ __align__(16) int tile[128];
  emulation::CopyAsync16(tile + 4 * Thread(), in + 4 * Thread());
  emulation::CommitCopies();
  out[Thread()] = tile[4 * Thread()];
}
__global__ void CopyUsedAfterWaitForOther(int* out, const int* in) {
  __shared__ __align__(16) int tile[256];
  for (int stage = 0; stage < 2; ++stage) {
    emulation::CopyAsync16(tile + stage * 128 + 4 * Thread(), in + 4 * Thread());
    emulation::CommitCopies();
  }
  emulation::WaitForCopies(1);
  out[Thread()] = tile[128 + 4 * Thread()];
}
__global__ void CopyUsedWithoutBarrier(int* out, const int* in) {
  __shared__ __align__(16) int tile[128];
  for (int i = 0; i < 4; ++i) tile[4 * Thread() + i] = i;
  __syncthreads();
  emulation::CopyAsync16(tile + 4 * Thread(), in + 4 * Thread());
  emulation::CommitCopies();
  emulation::WaitForCopies(0);
  out[Thread()] = tile[4 * (31 - Thread())];
}
__global__ void CopyIntoWhatOthersRead(int* out, const int* in) {
  __shared__ __align__(16) int tile[128];
  for (int i = 0; i < 4; ++i) tile[4 * Thread() + i] = i;
  __syncthreads();
  out[Thread()] = tile[4 * (31 - Thread())];
  __shfl_sync(kAllLanes, 0, 0);  // all have read, but nothing orders it
  emulation::CopyAsync16(tile + 4 * Thread(), in + 4 * Thread());
}
__global__ void MatrixRowsOfLanesNotWaitedFor(int* out) {
  __shared__ __align__(16) int tile[128];
  for (int i = 0; i < 4; ++i) tile[4 * Thread() + i] = i;
  unsigned result[4];
  emulation::LoadMatrixX4(result, tile + 4 * Thread());
  out[Thread()] = static_cast<int>(result[0]);
}

template <auto kKernel, unsigned kBlocks, unsigned kThreads, std::size_t kDynamicBytes = 0>
std::string RunOn() {
  const Scratch out(1024);
  return Run(kBlocks, kThreads, kDynamicBytes, kKernel, out.get());
}

// Compares what orders give.
template <auto kKernel, unsigned kThreads>
std::string RunInOrders() {
  std::string found;
  std::vector<int> first, result(64);
  emulation::InEveryOrder([&] {
    const Scratch out(1024);
    found += Run(1, kThreads, 0, kKernel, out.get());
    cudaMemcpy(result.data(), out.get(), 64 * sizeof(int), cudaMemcpyDeviceToHost);
    if (first.empty()) first = result;
    if (first != result) found = "depends on the order";
  });
  return found;
}

template <auto kKernel>
std::string RunOnInput() {
  const Scratch out(1024), in(1024);
  return Run(1, 32, 0, kKernel, out.get(), in.get());
}

}  // namespace

std::vector<PlantedError> PlantedRaces() {
  return {
      {"MissingBarrier", InOrdersAndRaceBuild("race on shared memory"),
       RunInOrders<MissingBarrier, 64>},
      {"MissingBarrierBeforeReuse", InOrdersAndRaceBuild("race on shared memory"),
       RunInOrders<MissingBarrierBeforeReuse, 64>},
      {"ShuffleTakenForFence", InRaceBuild("race on shared memory"),
       RunOn<ShuffleTakenForFence, 1, 32>},
      {"SyncwarpOfHalvesTakenForWhole", InRaceBuild("race on shared memory"),
       RunOn<SyncwarpOfHalvesTakenForWhole, 1, 32>},
      {"SyncwarpTakenForBarrier", InRaceBuild("race on shared memory"),
       RunOn<SyncwarpTakenForBarrier, 1, 64>},
      {"AllLanesWriteOneWord", InRaceBuild("race on shared memory"),
       RunOn<AllLanesWriteOneWord, 1, 64>},
      {"TwoThreadsWriteOutput", InRaceBuild("race on global memory"),
       RunOn<TwoThreadsWriteOutput, 1, 64>},
      {"BlocksWriteOneWord", InRaceBuild("of another block wrote"),
       RunOn<BlocksWriteOneWord, 2, 64>},
      {"ReadsWhatAnotherThreadUpdates", InOrdersAndRaceBuild("race on global memory"),
       RunInOrders<ReadsWhatAnotherThreadUpdates, 64>},
      {"ReadsWhatAnotherBlockWrites", InRaceBuild("of another block"),
       RunOn<ReadsWhatAnotherBlockWrites, 2, 1>},
      {"TwoThreadsWriteOneHalfWord", InRaceBuild("race on global memory"),
       [] {
         const Scratch out(1024);
         return Run(1, 64, 0, TwoThreadsWriteOneHalfWord, out.get<__nv_bfloat16>());
       }},
      {"AtomicAgainstStore", InRaceBuild("race on global memory"),
       RunOn<AtomicAgainstStore, 1, 64>},
      {"CounterWithoutAtomic", InRaceBuild("race on global memory"),
       RunOn<CounterWithoutAtomic, 1, 64>},
      {"ThirdReaderOfWarp", InRaceBuild("race on shared memory"), RunOn<ThirdReaderOfWarp, 1, 32>},
      {"UninitialisedShared", InRaceBuild("uninitialised shared memory"),
       RunOn<UninitialisedShared, 1, 64>},
      {"UninitialisedDynamicShared", InRaceBuild("uninitialised shared memory (dynamic)"),
       RunOn<UninitialisedDynamicShared, 1, 64, 256>},
      {"SharedOfEarlierBlock", InRaceBuild("uninitialised shared memory"),
       RunOn<SharedOfEarlierBlock, 2, 1>},
      {"UninitialisedGlobal", InRaceBuild("uninitialised global memory"),
       [] {
         const Scratch out(1024), in(1024, /*is_written=*/false);
         return Run(1, 32, 0, ReadsAll, out.get(), in.get());
       }},
      {"CopyOfUninitialised", InRaceBuild("uninitialised global memory"),
       [] {
         const Scratch out(1024), in(1024), unwritten(1024, /*is_written=*/false);
         cudaMemcpy(in.get(), unwritten.get(), 64, cudaMemcpyDeviceToDevice);
         return Run(1, 32, 0, ReadsAll, out.get(), in.get());
       }},
      {"CopyOfUninitialisedToHost", InRaceBuild("copy to the host of uninitialised global memory"),
       [] {
         const Scratch partly(1024, /*is_written=*/false);
         std::vector<char> host(64);
         cudaMemset(partly.get(), 0, 63);
         return NameOf(cudaMemcpy(host.data(), partly.get(), 64, cudaMemcpyDeviceToHost));
       }},
      {"CopyUsedWithoutWait", InRaceBuild("uninitialised shared memory"),
       RunOnInput<CopyUsedWithoutWait>},
      {"CopyUsedAfterWaitForOther", InRaceBuild("uninitialised shared memory"),
       RunOnInput<CopyUsedAfterWaitForOther>},
      {"CopyIntoWhatOthersRead", InRaceBuild("race on shared memory"),
       RunOnInput<CopyIntoWhatOthersRead>},
      {"MatrixRowsOfLanesNotWaitedFor", InRaceBuild("race on shared memory"),
       RunOn<MatrixRowsOfLanesNotWaitedFor, 1, 32>},
      {"CopyUsedWithoutBarrier", InRaceBuild("race on shared memory"),
       RunOnInput<CopyUsedWithoutBarrier>},
  };
}

}  // namespace forerun::cuda
