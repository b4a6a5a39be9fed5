#include "cpp/verify/row_scan_body.h"

namespace forerun {

const RowScan kPortableRowScan = {FindGroupMaxima, FilterGroup, GroupMassAbove};

}  // namespace forerun
