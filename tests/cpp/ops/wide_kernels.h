#ifndef FORERUN_TESTS_CPP_OPS_WIDE_KERNELS_H_
#define FORERUN_TESTS_CPP_OPS_WIDE_KERNELS_H_

#include "cpp/ops/cpu/kernels.h"

namespace forerun::wide_test {
extern const CpuKernels kKernels;
}

#endif  // FORERUN_TESTS_CPP_OPS_WIDE_KERNELS_H_
