// Accesses to memory that is not the kernel's, and arithmetic that is undefined.
#include "cuda/emulation/instructions.h"
#include "tests/cuda/emulation/planted_errors.h"

namespace forerun::cuda {
namespace {

constexpr FoundBy Always(const char* message) { return {message, message, message}; }
constexpr FoundBy InAsanAndRaceBuild(const char* asan, const char* race) {
  return {.asan = asan, .race = race, .by_death_in_asan = true};
}
constexpr FoundBy InAsanBuild(const char* asan) { return {.asan = asan, .by_death_in_asan = true}; }

int g_of_program = 0;

__device__ int Thread() { return static_cast<int>(threadIdx.x); }

// The compiler does not see `i`.
__global__ void LoadAt(const int* in, int i, int* out) { out[Thread()] = in[i]; }
__global__ void StoreAt(int* out, int i) { out[i] = 1; }
__global__ void SharedAt(int* out, int i) {
  __shared__ int tile[16];
  tile[Thread()] = Thread();
  __syncthreads();
  out[Thread()] = tile[i];
}
__global__ void DynamicSharedAt(int i) { static_cast<int*>(emulation::DynamicShared())[i] = 1; }
__global__ void LocalAt(int* out, int i) {
  int local[8] = {};
  for (int k = 0; k < 8; ++k) local[(k * i) % 8] = k;
  out[Thread()] = local[i];
}
__global__ void LocalOfAnotherThread(int* out) {
  __shared__ const int* shared_pointer;
  int local[4] = {Thread(), 1, 2, 3};
  if (threadIdx.x == 0) shared_pointer = local;
  __syncthreads();
  out[Thread()] = shared_pointer[Thread() % 4];
}
__global__ void VectorAt(const int* in, int i, int4* out) {
  out[Thread()] = *reinterpret_cast<const int4*>(in + i);
}
__global__ void AtomicAt(char* out, int i) { atomicAdd(reinterpret_cast<int*>(out + i), 1); }
__global__ void MatrixAt(int* out, int i) {
  __shared__ __align__(16) int tile[256];
  for (int k = 0; k < 8; ++k) tile[Thread() * 8 + k] = k;
  __syncthreads();
  unsigned result[4];
  emulation::LoadMatrixX4(result, tile + Thread() * 4 + i);
  out[Thread()] = static_cast<int>(result[0]);
}
__global__ void SignedOverflow(int* out, int value) { out[Thread()] = value + 1 + Thread(); }
__global__ void ShiftTooFar(int* out, int distance) { out[Thread()] = 1 << distance; }
__global__ void TooMuchStaticShared(int* out) {
  __shared__ int tile[13000];
  for (int i = Thread(); i < 13000; i += 32) tile[i] = i;
  __syncthreads();
  out[Thread()] = tile[12999 - Thread()];
}

std::string Load(int i) {
  const Scratch out(1024), in(100);
  return Run(1, 1, 0, LoadAt, in.get(), i, out.get());
}

}  // namespace

std::vector<PlantedError> PlantedAccesses() {
  return {
      {"LoadBeyondAllocation",
       InAsanAndRaceBuild("use-after-poison", "out of bounds: byte 100 of an allocation"),
       [] { return Load(25); }},
      {"LoadBeforeAllocation", InAsanAndRaceBuild("use-after-poison", "out of bounds"),
       [] { return Load(-1); }},
      {"StoreBeyondAllocation",
       {.plain = "wrote out of bounds: byte 100 of an allocation",
        .asan = "use-after-poison",
        .race = "out of bounds: byte 100",
        .by_death_in_asan = true},
       [] {
         const Scratch out(100);
         return Run(1, 1, 0, StoreAt, out.get(), 25);
       }},
      {"VectorHalfBeyondAllocation", InAsanAndRaceBuild("use-after-poison", "out of bounds"),
       [] {
         const Scratch in(40), out(1024);
         return Run(1, 1, 0, VectorAt, in.get(), 8, out.get<int4>());
       }},
      {"UseAfterFree", InAsanAndRaceBuild("use-after-poison", "of a freed allocation"),
       [] {
         int* freed = nullptr;
         cudaMalloc(&freed, 100);
         cudaFree(freed);
         return Run(1, 1, 0, StoreAt, freed, 3);
       }},
      {"BeyondStaticShared", InAsanBuild("global-buffer-overflow|out of bounds"),
       [] {
         const Scratch out(1024);
         return Run(1, 16, 0, SharedAt, out.get(), 16);
       }},
      {"BeyondDynamicShared", InAsanAndRaceBuild("use-after-poison", "beyond"),
       [] { return Run(1, 1, 100, DynamicSharedAt, 25); }},
      {"BeyondLocalArray", InAsanBuild("stack-buffer-overflow|out of bounds"),
       [] {
         const Scratch out(1024);
         return Run(1, 1, 0, LocalAt, out.get(), 8);
       }},
      {"LocalOfAnotherThread",
       {.race = "another thread's local memory"},
       [] {
         const Scratch out(1024);
         return Run(1, 32, 0, LocalOfAnotherThread, out.get());
       }},
      {"HostMemoryInKernel",
       {.race = "access to the host's memory"},
       [] {
         const Scratch out(1024);
         const std::vector<int> host(8);
         return Run(1, 1, 0, LoadAt, host.data(), 0, out.get());
       }},
      {"ProgramsMemoryInKernel",
       {.race = "write to the program's memory"},
       [] { return Run(1, 1, 0, StoreAt, &g_of_program, 0); }},
      {"MisalignedVector",
       InAsanAndRaceBuild("misaligned address", "misaligned access of 16 bytes"),
       [] {
         const Scratch in(1024), out(1024);
         return Run(1, 1, 0, VectorAt, in.get(), 1, out.get<int4>());
       }},
      {"MisalignedAtomic", Always("not a multiple of 4"),
       [] {
         const Scratch out(1024);
         return Run(1, 1, 0, AtomicAt, out.get<char>(), 2);
       }},
      {"MisalignedMatrixRow", Always("not a multiple of 16"),
       [] {
         const Scratch out(1024);
         return Run(1, 32, 0, MatrixAt, out.get(), 1);
       }},
      {"SignedOverflow", InAsanBuild("signed integer overflow"),
       [] {
         const Scratch out(1024);
         return Run(1, 1, 0, SignedOverflow, out.get(), 0x7fffffff);
       }},
      {"ShiftTooFar", InAsanBuild("shift exponent"),
       [] {
         const Scratch out(1024);
         return Run(1, 1, 0, ShiftTooFar, out.get(), 32);
       }},
      {"TooMuchStaticShared",
       {.race = "too much shared memory: 52000 bytes static"},
       [] {
         const Scratch out(1024);
         return Run(1, 32, 0, TooMuchStaticShared, out.get());
       }},
  };
}

}  // namespace forerun::cuda
