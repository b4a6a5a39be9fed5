// Compiled for AVX2 on x86-64.
#include "cpp/sampling/row_scan.h"

#if defined(__AVX2__)
#include "cpp/sampling/row_scan_body.h"
#endif

namespace forerun {

#if defined(__AVX2__)
const RowScan* Avx2RowScan() {
  static constexpr RowScan kScan = {FindGroupMaxima, FilterGroup, GroupMassAbove, SumExp};
  return __builtin_cpu_supports("avx2") ? &kScan : nullptr;
}
#else
const RowScan* Avx2RowScan() { return nullptr; }
#endif

}  // namespace forerun
