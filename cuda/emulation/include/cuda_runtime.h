// Takes the part of CUDA's <cuda_runtime.h>: with this directory first on the include path, a .cu
// file builds with a plain C++ compiler, unchanged, and runs on the emulated GPU
// (cuda/emulation/emulation.h). Holds what the kernels here use and no more, so that anything else
// is a compile error and not a wrong result.
#ifndef FORERUN_CUDA_EMULATION_CUDA_RUNTIME_H_
#define FORERUN_CUDA_EMULATION_CUDA_RUNTIME_H_

#include "emulated/atomics.h"
#include "emulated/collectives.h"
#include "emulated/intrinsics.h"
#include "emulated/language.h"
#include "emulated/launch.h"
#include "emulated/runtime_api.h"

#endif  // FORERUN_CUDA_EMULATION_CUDA_RUNTIME_H_
