// Which instruction sets this machine can run.
#ifndef FORERUN_CPP_OPS_CPU_ISA_H_
#define FORERUN_CPP_OPS_CPU_ISA_H_

#include <string>

#include "cpp/ops/cpu/kernels.h"

namespace forerun {

// The kernels of an instruction set of AvailableCpuIsas, of the best where the name is empty.
// Throws InvalidArgument for any other name.
const CpuKernels& FindCpuKernels(const std::string& isa);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_ISA_H_
