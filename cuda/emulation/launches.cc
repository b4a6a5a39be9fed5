// Launches: what is checked before one, and counted.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>

#include "cuda/emulation/scheduler.h"
#include "cuda/emulation/streams.h"
#include "cuda/emulation/symbols.h"

namespace forerun::emulation {
namespace {

constexpr int kMinCapability = 80;  // of the machine code that the library has

std::map<const void*, std::size_t>& SharedLimits() {  // by kernel, where it was raised
  static std::map<const void*, std::size_t> limits;
  return limits;
}

bool IsValid(const cudaLaunchConfig_t& config) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const auto threads = std::uint64_t{block.x} * block.y * block.z;
  return threads > 0 && threads <= kMaxThreads && block.z <= 64 && grid.x > 0 && grid.y > 0 &&
         grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
}

struct KernelTable {
  std::vector<const void*> functions;
  std::vector<KernelCounters> counters;
};
KernelTable& Kernels() {
  static KernelTable table;
  return table;
}

void RunLaunch(const Launched& launch) {
  ++CountersOf(launch.function).launches;
  ++counters().launches;
  scheduler().SeedFrom(options().seed * 0x2545f4914f6cdd1dull + counters().launches);
  scheduler().Run(launch);
}

}  // namespace

std::size_t MaxSharedBytes(int capability) {
  if (capability == 80 || capability == 87) return 163 << 10;
  return capability >= 90 && capability < 120 ? 227 << 10 : 99 << 10;
}

bool IsFailing(int& countdown) { return countdown > 0 && --countdown == 0; }

KernelCounters& CountersOf(const void* kernel) {
  KernelTable& table = Kernels();
  const auto found = std::find(table.functions.begin(), table.functions.end(), kernel);
  const auto index = static_cast<std::size_t>(found - table.functions.begin());
  if (found == table.functions.end()) {
    table.functions.push_back(kernel);
    table.counters.push_back({});
  }
  return table.counters[index];
}

std::vector<KernelCounters> CountersByKernel() {
  const std::lock_guard lock(ApiMutex());
  std::vector<KernelCounters> result = Kernels().counters;
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i].name = FunctionName(Kernels().functions[i]);
  }
  return result;
}

void ForgetKernels() { Kernels() = {}; }

cudaError_t SetMaxDynamicShared(const void* kernel, int bytes) {
  return Call([&] {
    if (bytes < 0 || static_cast<std::size_t>(bytes) > MaxSharedBytes(options().capability)) {
      return cudaErrorInvalidValue;
    }
    SharedLimits()[kernel] = static_cast<std::size_t>(bytes);
    ++counters().function_settings;
    return cudaSuccess;
  });
}

cudaError_t Launch(const cudaLaunchConfig_t& config, const Kernel& kernel) {
  return Call([&] {
    if (options().capability < kMinCapability) return cudaErrorNoKernelImageForDevice;
    if (!IsValid(config)) return cudaErrorInvalidConfiguration;
    const auto limit = SharedLimits().find(kernel.function);
    if (config.dynamicSmemBytes >
        (limit != SharedLimits().end() ? limit->second : kPlainSharedBytes)) {
      return cudaErrorInvalidValue;
    }
    if (config.numAttrs > 0 && config.attrs == nullptr) return cudaErrorInvalidValue;
    if (IsFailing(options().failing_launch)) return FailLaunch(config.stream);
    const auto launch = std::make_shared<Launched>();
    launch->function = kernel.function;
    launch->closure.resize(kernel.closure_bytes / sizeof(std::max_align_t) + 1);
    launch->closure_bytes = kernel.closure_bytes;
    std::memcpy(launch->closure.data(), kernel.closure, kernel.closure_bytes);
    launch->call = kernel.call;
    launch->grid = config.gridDim;
    launch->block = config.blockDim;
    launch->dynamic_shared_bytes = config.dynamicSmemBytes;
    const dim3& grid = config.gridDim;
    const std::uint64_t num_blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    counters().blocks_queued += num_blocks;
    const double block_us = static_cast<double>(num_blocks) * options().block_us;
    return Enqueue(config.stream, options().launch_us + block_us, [launch] { RunLaunch(*launch); });
  });
}

}  // namespace forerun::emulation
