#include "cpp/ops/cpu/cpu_backend.h"

#include <unistd.h>

#include "cpp/util/machine.h"
#include "cpp/util/simd/isa.h"

namespace forerun {

CpuBackend::CpuBackend(int num_threads, const std::string& isa)
    : team_(num_threads), ops_(team_, FindIsa(isa)) {}

MemorySize CpuBackend::memory_size() const {
  const std::int64_t page_bytes = sysconf(_SC_PAGESIZE);
  return {AvailableMemoryBytes().value_or(sysconf(_SC_AVPHYS_PAGES) * page_bytes),
          sysconf(_SC_PHYS_PAGES) * page_bytes};
}

}  // namespace forerun
