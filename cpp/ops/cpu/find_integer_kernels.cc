#include "cpp/ops/cpu/find_integer_kernels.h"

#include <algorithm>
#include <vector>

#include "cpp/util/simd/isa.h"

namespace forerun {
namespace {

std::vector<const IntegerKernels*> DetectIntegerKernels() {
  std::vector<const IntegerKernels*> kernels = {&portable::kIntegerKernels};
#if defined(__x86_64__)
  const Isa best = AvailableIsas().front();
  if (best >= Isa::kAvx2) kernels.push_back(&avx2::kIntegerKernels);
  if (HasAvxVnni()) kernels.push_back(&avxvnni::kIntegerKernels);
  if (best >= Isa::kAvx512) kernels.push_back(&avx512::kIntegerKernels);
  if (HasAvx512Vnni()) kernels.push_back(&avx512vnni::kIntegerKernels);
#endif
  return kernels;
}

}  // namespace

std::span<const IntegerKernels* const> AvailableIntegerKernels() {
  static const std::vector<const IntegerKernels*> kernels = DetectIntegerKernels();
  return kernels;
}

const IntegerKernels& IntegerKernelsOf(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512 && HasAvx512Vnni()) return avx512vnni::kIntegerKernels;
  if (isa >= Isa::kAvx2 && HasAvxVnni()) return avxvnni::kIntegerKernels;
  if (isa >= Isa::kAvx512) return avx512::kIntegerKernels;
  if (isa == Isa::kAvx2) return avx2::kIntegerKernels;
#endif
  static_cast<void>(isa);
  return portable::kIntegerKernels;
}

}  // namespace forerun
