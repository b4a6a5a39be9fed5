#define FORERUN_ISA portable
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_portable.h"

#include "cpp/ops/cpu/kernel_table.h"
