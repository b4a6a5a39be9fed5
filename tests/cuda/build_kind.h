// Which of the builds of the emulated GPU runs, or none: on a GPU.
#ifndef FORERUN_TESTS_CUDA_BUILD_KIND_H_
#define FORERUN_TESTS_CUDA_BUILD_KIND_H_

#ifdef FORERUN_EMULATED_GPU
#include "cuda/emulation/emulation.h"
#endif

namespace forerun::testing {

// Whether the kernels run slowly, and what they load is counted.
inline bool DetectsRaces() {
#ifdef FORERUN_EMULATED_GPU
  return emulation::DetectsRaces();
#else
  return false;
#endif
}

// Without checks of memory or races, with which kernels take many times as long.
inline bool IsPlainBuild() {
#ifdef __SANITIZE_ADDRESS__
  return false;
#else
  return !DetectsRaces();
#endif
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CUDA_BUILD_KIND_H_
