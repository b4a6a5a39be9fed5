// A GPU in software, to test kernels where there is none: each CUDA thread is a fiber, blocks run
// one after another, and every run repeats from its options. It checks what a kernel does, not how
// fast. The .cu files are compiled by a C++ compiler against include/ and linked with one of
//
//   plain   all checks of barriers, collectives, launches, copies and streams, in each Order
//   asan    AddressSanitizer and UBSan: bounds, use after free, alignment, undefined arithmetic
//   race    a detector of races and of reads of what nothing wrote, which also counts bytes
//
// An error that a kernel makes is thrown as Error where the host waits for it, which names the
// lines. What a real machine reports (no driver, no memory, a failed launch) is a cudaError_t, as
// Options asks. One lock serves all host threads. What it cannot show: speed, the device's own
// rounding (FMA, tensor cores), and weak memory in programs that have races.
#ifndef FORERUN_CUDA_EMULATION_EMULATION_H_
#define FORERUN_CUDA_EMULATION_EMULATION_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace forerun::emulation {

// Which of the runnable threads goes on when one waits, and which block is next.
enum class Order : std::uint8_t {
  kForward,     // by number, in turn
  kDepthFirst,  // the one that has just become runnable: a warp runs as far as it can
  kReverse,
  kRandom,  // from the seed; atomics and, in the race build, other accesses interrupt
};

struct Options {
  Order order = Order::kForward;
  std::uint64_t seed = 1;
  // Queued work runs only when the host waits for it, and what a copy to the host will overwrite
  // is overwritten with noise at once: a missing wait or a reused staging buffer shows for certain.
  bool lazy_streams = false;
  // What events measure: per launch and copy, and in addition per block of a launch.
  double launch_us = 5, block_us = 0;

  // The machine.
  int driver_version = 13000;             // 0: no driver
  cudaError_t start_error = cudaSuccess;  // else what every call returns of a GPU that cannot start
  // Only the first can do something: where another is a thread's current one, calls that need it
  // return cudaErrorInvalidDevice.
  int num_devices = 1;
  int capability = 90;  // 10 * major + minor
  std::size_t memory_bytes = std::size_t{1} << 30;

  // Failures, each once: 1 is the next allocation or graph, or launch of a kernel or
  // a graph, 0 none.
  int failing_allocation = 0;
  int failing_launch = 0;
  // A lack of memory and cudaErrorLaunchOutOfResources are returned by the launch. Others, as on a
  // GPU, by the next wait and from then on by every call, until Reset.
  cudaError_t launch_error = cudaErrorLaunchFailure;
};
Options& options();

// Sets options from words as "order=random seed=3 lazy_streams=1 failing_launch=2": the names of
// Options, with memory_mib in mebibytes. Throws std::invalid_argument, with nothing changed, that
// names the word and what is valid. The variable FORERUN_EMULATED_GPU is read so at the first call.
void Configure(std::string_view words);

// Options and counters as at the start, errors forgotten, streams emptied. Memory stays allocated.
void Reset();

struct Counters {
  std::uint64_t launches, blocks, threads, switches, barriers, collectives;
  std::uint64_t blocks_queued;  // of launches that were asked for, whether or not they have run
  std::uint64_t copies_to_device, bytes_to_device, copies_from_device, bytes_from_device;
  std::uint64_t graph_launches;     // whose kernels count as launches too
  std::uint64_t waits;              // calls that wait: synchronize, plain copies, cudaFree
  std::uint64_t function_settings;  // calls of cudaFuncSetAttribute
  std::uint64_t allocations;        // of device memory and of pinned memory
  // Of device memory by kernels. Race build only.
  std::uint64_t bytes_loaded, bytes_stored, watched_bytes_loaded;
};
Counters& counters();

// Loads from here are counted in watched_bytes_loaded; a null pointer ends it. Race build only.
void WatchLoads(const void* address, std::size_t bytes);

struct KernelCounters {
  std::string name;  // demangled
  std::uint64_t launches, bytes_loaded, bytes_stored;
};
std::vector<KernelCounters> CountersByKernel();  // in the order of their first launch

// True in the race build.
bool DetectsRaces();

// What a kernel or the host did wrong. The message names the thread, the lines and the rule.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The dynamic shared memory of the running block.
void* DynamicShared();

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_EMULATION_H_
