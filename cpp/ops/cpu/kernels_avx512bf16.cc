#define FORERUN_ISA avx512bf16
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_avx512.h"
#define FORERUN_HAS_BFLOAT16_DOT 1

#include "cpp/ops/cpu/kernel_table.h"
