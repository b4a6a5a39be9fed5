#include "cpp/ops/cpu/cpu_backend.h"

#include <unistd.h>

#include "cpp/util/machine.h"
#include "cpp/util/simd/isa.h"

namespace forerun {

CpuBackend::CpuBackend(int num_threads, const std::string& isa)
    : team_(num_threads), ops_(team_, FindIsa(isa)) {}

std::int64_t CpuBackend::AvailableBytes() const {
  return AvailableMemoryBytes().value_or(std::int64_t{sysconf(_SC_AVPHYS_PAGES)} *
                                         sysconf(_SC_PAGESIZE));
}

}  // namespace forerun
