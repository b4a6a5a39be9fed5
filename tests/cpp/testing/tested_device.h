// The device that tests of whole models run on: the CPU, or with FORERUN_TEST_DEVICE=cuda in the
// environment the GPU, real or emulated, of which FORERUN_CUDA_LIBRARY names the library.
#ifndef FORERUN_TESTS_CPP_TESTING_TESTED_DEVICE_H_
#define FORERUN_TESTS_CPP_TESTING_TESTED_DEVICE_H_

#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "cpp/ops/cpu/cpu_backend.h"
#include "cpp/ops/cuda_library.h"
#include "cpp/util/check.h"

namespace forerun::testing {

inline bool RunsOnGpu() {
  const char* name = std::getenv("FORERUN_TEST_DEVICE");
  FORERUN_CHECK(name == nullptr || std::string_view(name) == "cuda");
  return name != nullptr;
}

inline Backend& TestedDevice() {
  // A GPU is never closed: at the end of the process what its library keeps may be gone before it.
  static Backend* const gpu = RunsOnGpu() ? OpenCudaLibrary().open_gpu().release() : nullptr;
  if (gpu != nullptr) return *gpu;
  static CpuBackend cpu(/*num_threads=*/2);
  return cpu;
}

// Sets options of the emulated GPU (cuda/emulation/emulation.h). False: the device is none.
inline bool ConfigureEmulatedGpu(const std::string& words) {
  if (!RunsOnGpu()) return false;
  const char* const path = std::getenv("FORERUN_CUDA_LIBRARY");
  void* const library = path != nullptr ? dlopen(path, RTLD_NOW | RTLD_NOLOAD) : nullptr;
  if (library == nullptr) return false;
  using Function = const char*(const char* words);
  auto* const configure =
      reinterpret_cast<Function*>(dlsym(library, "forerun_emulation_configure"));
  dlclose(library);  // it stays loaded
  if (configure == nullptr) return false;
  const char* const problem = configure(words.c_str());
  FORERUN_CHECK(problem == nullptr, problem);
  return true;
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_TESTED_DEVICE_H_
