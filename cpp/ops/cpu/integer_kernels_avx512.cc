#define FORERUN_ISA avx512
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_avx512.h"
#define FORERUN_INTS_HEADER "cpp/util/simd/dots_avx2.h"

#include "cpp/ops/cpu/integer_table.h"
