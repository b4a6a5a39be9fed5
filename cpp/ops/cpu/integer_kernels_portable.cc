#define FORERUN_ISA portable
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_portable.h"
#define FORERUN_INTS_HEADER "cpp/util/simd/ints_portable.h"

#include "cpp/ops/cpu/integer_table.h"
