#define FORERUN_ISA avx512
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_avx512.h"

#include "cpp/ops/cpu/kernel_table.h"
