#define FORERUN_ISA portable
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_portable.h"

#include "cpp/sampling/row_scan_body.h"
