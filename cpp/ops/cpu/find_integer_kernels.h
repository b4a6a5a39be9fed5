// Which integer kernels this machine can run, and which of them go with an Isa.
#ifndef FORERUN_CPP_OPS_CPU_FIND_INTEGER_KERNELS_H_
#define FORERUN_CPP_OPS_CPU_FIND_INTEGER_KERNELS_H_

#include <span>

#include "cpp/ops/cpu/integer_kernels.h"

namespace forerun {

// All that this machine can run, the slowest first.
std::span<const IntegerKernels* const> AvailableIntegerKernels();

const IntegerKernels& IntegerKernelsOf(Isa isa);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_FIND_INTEGER_KERNELS_H_
