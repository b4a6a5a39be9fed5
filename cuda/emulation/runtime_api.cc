// Errors, devices, memory, copies and launches of the runtime API.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda/emulation/detector.h"
#include "cuda/emulation/device_memory.h"
#include "cuda/emulation/streams.h"

namespace forerun::emulation {
namespace {

constexpr int kRuntimeVersion = 13000;
std::map<void*, std::size_t>& PinnedAllocations() {
  static std::map<void*, std::size_t> allocations;
  return allocations;
}

bool IsPinned(const void* address) {
  const auto* const byte = static_cast<const char*>(address);
  return std::any_of(PinnedAllocations().begin(), PinnedAllocations().end(),
                     [&](const auto& entry) {
                       const auto* const begin = static_cast<const char*>(entry.first);
                       return byte >= begin && byte < begin + entry.second;
                     });
}

// The kind as it is, from where the pointers are; false if that cannot be copied.
bool Resolve(void* to, const void* from, std::size_t bytes, cudaMemcpyKind* kind) {
  const DeviceMemory& device = device_memory();
  const bool to_device = device.InRange(to), from_device = device.InRange(from);
  const auto actual = static_cast<cudaMemcpyKind>((to_device ? 1 : 0) + (from_device ? 2 : 0));
  if (*kind == cudaMemcpyDefault) *kind = actual;
  return *kind == actual && (!to_device || device.Holds(to, bytes)) &&
         (!from_device || device.Holds(from, bytes));
}

void Copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  cudaMemcpyKind actual = kind;
  if (!Resolve(to, from, bytes, &actual)) {
    throw Error("a queued copy of " + std::to_string(bytes) + " bytes found its memory freed: to " +
                device_memory().Describe(to) + ", from " + device_memory().Describe(from));
  }
  const DeviceMemory::Open open(device_memory());
  if (kind == cudaMemcpyHostToDevice) {
    ++counters().copies_to_device;
    counters().bytes_to_device += bytes;
  } else if (kind == cudaMemcpyDeviceToHost) {
    ++counters().copies_from_device;
    counters().bytes_from_device += bytes;
  }
  std::memmove(to, from, bytes);
  if (detector != nullptr) detector->Copied(to, from, bytes);
}

}  // namespace
}  // namespace forerun::emulation

namespace emulation = forerun::emulation;
using emulation::Call;

// ---- Errors

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define FORERUN_EMULATED_ERROR(name) \
  case name:                         \
    return #name;
    FORERUN_EMULATED_ERROR(cudaSuccess)
    FORERUN_EMULATED_ERROR(cudaErrorInvalidValue)
    FORERUN_EMULATED_ERROR(cudaErrorMemoryAllocation)
    FORERUN_EMULATED_ERROR(cudaErrorInitializationError)
    FORERUN_EMULATED_ERROR(cudaErrorInvalidConfiguration)
    FORERUN_EMULATED_ERROR(cudaErrorInvalidMemcpyDirection)
    FORERUN_EMULATED_ERROR(cudaErrorStubLibrary)
    FORERUN_EMULATED_ERROR(cudaErrorInsufficientDriver)
    FORERUN_EMULATED_ERROR(cudaErrorDevicesUnavailable)
    FORERUN_EMULATED_ERROR(cudaErrorNoDevice)
    FORERUN_EMULATED_ERROR(cudaErrorInvalidDevice)
    FORERUN_EMULATED_ERROR(cudaErrorNoKernelImageForDevice)
    FORERUN_EMULATED_ERROR(cudaErrorInvalidResourceHandle)
    FORERUN_EMULATED_ERROR(cudaErrorNotReady)
    FORERUN_EMULATED_ERROR(cudaErrorIllegalAddress)
    FORERUN_EMULATED_ERROR(cudaErrorLaunchOutOfResources)
    FORERUN_EMULATED_ERROR(cudaErrorLaunchFailure)
    FORERUN_EMULATED_ERROR(cudaErrorSystemNotReady)
    FORERUN_EMULATED_ERROR(cudaErrorSystemDriverMismatch)
    FORERUN_EMULATED_ERROR(cudaErrorStreamCaptureUnsupported)
    FORERUN_EMULATED_ERROR(cudaErrorStreamCaptureInvalidated)
#undef FORERUN_EMULATED_ERROR
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    default:
      return cudaGetErrorName(error);
  }
}

// ---- Devices

cudaError_t cudaDriverGetVersion(int* version) {
  *version = emulation::options().driver_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = emulation::kRuntimeVersion;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  return emulation::CallOnAnyDevice([&] {
    *count = emulation::options().num_devices;
    return cudaSuccess;
  });
}
cudaError_t cudaGetDevice(int* device) {
  return emulation::CallOnAnyDevice([&] {
    *device = emulation::current_device;
    return cudaSuccess;
  });
}
cudaError_t cudaSetDevice(int device) {
  return emulation::CallOnAnyDevice([&] {
    if (device < 0 || device >= emulation::options().num_devices) return cudaErrorInvalidDevice;
    emulation::current_device = device;
    return cudaSuccess;
  });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return emulation::CallOnAnyDevice([&] {
    if (device < 0 || device >= emulation::options().num_devices) return cudaErrorInvalidDevice;
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "emulated GPU");
    properties->totalGlobalMem = emulation::options().memory_bytes;
    properties->sharedMemPerBlock = emulation::kPlainSharedBytes;
    properties->sharedMemPerBlockOptin = emulation::MaxSharedBytes(emulation::options().capability);
    properties->major = emulation::options().capability / 10;
    properties->minor = emulation::options().capability % 10;
    properties->multiProcessorCount = 8;
    properties->warpSize = 32;
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      return cudaSuccess;
  }
  return emulation::Remember(cudaErrorInvalidValue);
}

// ---- Memory

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  return Call([&] {
    *address = nullptr;
    if (const cudaError_t error = emulation::StartUnsafeCall(); error != cudaSuccess) return error;
    if (emulation::IsFailing(emulation::options().failing_allocation)) {
      return cudaErrorMemoryAllocation;
    }
    if (bytes == 0) return cudaSuccess;
    *address = emulation::device_memory().Allocate(bytes, emulation::options().memory_bytes);
    if (*address == nullptr) return cudaErrorMemoryAllocation;
    ++emulation::counters().allocations;
    return cudaSuccess;
  });
}
// Frees in every state, so that what a failed device held can be freed.
cudaError_t cudaFree(void* address) {
  const std::lock_guard lock(emulation::ApiMutex());
  const cudaError_t before = emulation::StandingError();
  if (address == nullptr) return emulation::Remember(before);
  if (before == cudaSuccess) {
    if (const cudaError_t error = emulation::StartUnsafeCall(); error != cudaSuccess) {
      return emulation::Remember(error);
    }
    emulation::WaitForAll();
  }
  bool is_known = false;
  const std::size_t bytes = emulation::device_memory().Free(address, &is_known);
  if (!is_known) return emulation::Remember(cudaErrorInvalidValue);
  if (emulation::detector != nullptr) emulation::detector->Freed(address, bytes);
  return emulation::Remember(emulation::StandingError());
}
cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
  return Call([&] {
    *address = nullptr;
    if (const cudaError_t error = emulation::StartUnsafeCall(); error != cudaSuccess) return error;
    if (emulation::IsFailing(emulation::options().failing_allocation)) {
      return cudaErrorMemoryAllocation;
    }
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(address, 4096, bytes) != 0) return cudaErrorMemoryAllocation;
    std::memset(*address, 0xa5, bytes);
    emulation::PinnedAllocations()[*address] = bytes;
    ++emulation::counters().allocations;
    return cudaSuccess;
  });
}
cudaError_t cudaFreeHost(void* address) {
  const std::lock_guard lock(emulation::ApiMutex());
  if (address == nullptr) return cudaSuccess;
  if (emulation::PinnedAllocations().erase(address) == 0) {
    return emulation::Remember(cudaErrorInvalidValue);
  }
  std::free(address);
  return emulation::Remember(emulation::StandingError());
}
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  return Call([&] {
    *total_bytes = emulation::options().memory_bytes;
    const std::size_t used = emulation::device_memory().allocated_bytes();
    *free_bytes = *total_bytes - std::min(*total_bytes, used);
    return cudaSuccess;
  });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  return Call([&] {
    *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, const_cast<void*>(address)};
    if (emulation::device_memory().Holds(address)) {
      *attributes = {cudaMemoryTypeDevice, 0, const_cast<void*>(address), nullptr};
    } else if (emulation::IsPinned(address)) {
      *attributes = {cudaMemoryTypeHost, 0, const_cast<void*>(address), const_cast<void*>(address)};
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Call([&] {
    if (bytes == 0) return cudaSuccess;
    cudaMemcpyKind actual = kind;
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) {
      return cudaErrorInvalidMemcpyDirection;
    }
    if (!emulation::Resolve(to, from, bytes, &actual)) return cudaErrorInvalidValue;
    const CUstream_st* const queue = emulation::FindStream(stream);
    if (emulation::options().lazy_streams && actual == cudaMemcpyDeviceToHost && queue != nullptr &&
        queue->capture == nullptr) {
      std::memset(to, 0xa5, bytes);
    }
    const bool to_is_pinned = emulation::IsPinned(to), from_is_pinned = emulation::IsPinned(from);
    return emulation::Enqueue(stream, emulation::options().launch_us, [=] {
      if (to_is_pinned != emulation::IsPinned(to) || from_is_pinned != emulation::IsPinned(from)) {
        throw emulation::Error("a queued copy of " + std::to_string(bytes) +
                               " bytes found its pinned memory freed");
      }
      emulation::Copy(to, from, bytes, actual);
    });
  });
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return Call([&] {
    if (const cudaError_t error = emulation::StartUnsafeCall(); error != cudaSuccess) return error;
    const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return error != cudaSuccess ? error : emulation::WaitFor(nullptr);
  });
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return Call([&] {
    if (bytes == 0) return cudaSuccess;
    if (!emulation::device_memory().Holds(to, bytes)) return cudaErrorInvalidValue;
    return emulation::Enqueue(stream, emulation::options().launch_us, [=] {
      const emulation::DeviceMemory::Open open(emulation::device_memory());
      std::memset(to, value, bytes);
      if (emulation::detector != nullptr) emulation::detector->Copied(to, nullptr, bytes);
    });
  });
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return Call([&] {
    if (const cudaError_t error = emulation::StartUnsafeCall(); error != cudaSuccess) return error;
    const cudaError_t error = cudaMemsetAsync(to, value, bytes, nullptr);
    return error != cudaSuccess ? error : emulation::WaitFor(nullptr);
  });
}
