#include "cpp/sampling/row_scan.h"

#include "cpp/util/simd/isa.h"

namespace forerun {

namespace portable {
extern const RowScan kRowScan;
}
#if defined(__x86_64__)
namespace avx2 {
extern const RowScan kRowScan;
}
#endif

const RowScan& RowScanOf(Isa isa) {
#if defined(__x86_64__)
  // Wider vectors were not tried: a group has 64 tokens, and four chains of them hide latencies.
  if (isa != Isa::kPortable) return avx2::kRowScan;
#endif
  static_cast<void>(isa);
  return portable::kRowScan;
}

const RowScan& BestRowScan() {
  static const RowScan& best = RowScanOf(AvailableIsas().front());
  return best;
}

}  // namespace forerun
