// Kernels and host code with one error each, and which build of the emulated GPU finds it.
#ifndef FORERUN_TESTS_CUDA_EMULATION_PLANTED_ERRORS_H_
#define FORERUN_TESTS_CUDA_EMULATION_PLANTED_ERRORS_H_

#include <cuda_runtime.h>

#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "cuda/emulation/emulation.h"

namespace forerun::cuda {

// What a run must say: part of the message of the Error, the name of the cudaError_t, or of what
// is printed as the process dies. Empty: this build is not the one that finds it.
struct FoundBy {
  const char* plain = "";
  const char* asan = "";
  const char* race = "";
  bool by_death_in_plain_and_race = false;
  bool by_death_in_asan = false;
};

struct PlantedError {
  const char* name;
  FoundBy found_by;
  std::string (*run)();  // what was found, but for an Error; empty for nothing
};

inline void PrintTo(const PlantedError& planted, std::ostream* out) { *out << planted.name; }

std::vector<PlantedError> PlantedDivergence();
std::vector<PlantedError> PlantedRaces();
std::vector<PlantedError> PlantedAccesses();
std::vector<PlantedError> PlantedHostErrors();

// Device memory for one run: `bytes` of 0 that a kernel may take for what it wants.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes, bool is_written = true) {
    cudaMalloc(&data_, bytes);
    if (is_written) cudaMemset(data_, 0, bytes);
  }
  ~Scratch() { cudaFree(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T = int>
  T* get() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  char* data_ = nullptr;
};

inline std::string NameOf(cudaError_t error) {
  return error == cudaSuccess ? "" : cudaGetErrorName(error);
}

template <class... Parameters, class... Arguments>
std::string Run(dim3 grid, dim3 block, std::size_t dynamic_bytes, void (*kernel)(Parameters...),
                Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_bytes;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return NameOf(error != cudaSuccess ? error : cudaDeviceSynchronize());
}

}  // namespace forerun::cuda

#endif  // FORERUN_TESTS_CUDA_EMULATION_PLANTED_ERRORS_H_
