#include "cpp/ops/cpu/kernels.h"

#include "cpp/util/simd/isa.h"

namespace forerun {

const CpuKernels& CpuKernelsOf(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512BFloat16:
      return avx512bf16::kKernels;
    case Isa::kAvx512:
      return avx512::kKernels;
    case Isa::kAvx2:
      return avx2::kKernels;
#endif
    default:
      return portable::kKernels;
  }
}

}  // namespace forerun
