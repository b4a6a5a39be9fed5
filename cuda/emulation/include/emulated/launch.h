// Launches, as cudaLaunchKernelEx takes them: the arguments are converted and copied at the call.
#ifndef FORERUN_CUDA_EMULATION_LAUNCH_H_
#define FORERUN_CUDA_EMULATION_LAUNCH_H_

#include <cstddef>
#include <type_traits>
#include <utility>

#include "runtime_api.h"

namespace forerun::emulation {

constexpr std::size_t kMaxArgumentBytes = 4096;

// A kernel with its arguments: `call(copy of closure)` runs one thread.
struct Kernel {
  const void* function;
  const void* closure;  // copied by Launch
  std::size_t closure_bytes;
  void (*call)(const void* closure);
};

cudaError_t Launch(const cudaLaunchConfig_t& config, const Kernel& kernel);
cudaError_t SetMaxDynamicShared(const void* kernel, int bytes);

// Parameters by value: the conversions of a call, and no others.
template <class... Parameters>
cudaError_t LaunchWith(const cudaLaunchConfig_t& config, void (*kernel)(Parameters...),
                       Parameters... values) {
  const auto closure = [kernel, values...] { kernel(values...); };
  using Closure = decltype(closure);
  static_assert(std::is_trivially_copyable_v<std::remove_const_t<Closure>>,
                "kernel arguments are copied byte by byte");
  static_assert(sizeof closure <= kMaxArgumentBytes && alignof(Closure) <= 16);
  return Launch(config, {reinterpret_cast<const void*>(kernel), &closure, sizeof closure,
                         [](const void* copy) { (*static_cast<Closure*>(copy))(); }});
}

}  // namespace forerun::emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return forerun::emulation::LaunchWith<Parameters...>(*config, kernel,
                                                       std::forward<Arguments>(arguments)...);
}

template <class Function>
cudaError_t cudaFuncSetAttribute(Function* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  return forerun::emulation::SetMaxDynamicShared(reinterpret_cast<const void*>(kernel), value);
}

// Programmatic dependent launch: a kernel starts here when the one before it has ended.
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

#endif  // FORERUN_CUDA_EMULATION_LAUNCH_H_
