// What kernels reach through inline PTX and extern declarations on a GPU.
#ifndef FORERUN_CUDA_EMULATION_EMULATED_INSTRUCTIONS_H_
#define FORERUN_CUDA_EMULATION_EMULATED_INSTRUCTIONS_H_

#include "cuda/emulation/emulation.h"
#include "cuda/emulation/instructions.h"

#endif  // FORERUN_CUDA_EMULATION_EMULATED_INSTRUCTIONS_H_
