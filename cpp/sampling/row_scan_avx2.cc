#define FORERUN_ISA avx2
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_avx2.h"

#include "cpp/sampling/row_scan_body.h"
