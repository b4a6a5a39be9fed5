#include "cpp/sampling/row_scan_body.h"

namespace forerun {

const RowScan kPortableRowScan = {FindGroupMaxima, FilterGroup, GroupMassAbove, SumExp};

const RowScan& BestRowScan() {
  static const RowScan* const avx2 = Avx2RowScan();
  return avx2 != nullptr ? *avx2 : kPortableRowScan;
}

}  // namespace forerun
