#define FORERUN_ISA avx2
#define FORERUN_VEC_HEADER "cpp/ops/cpu/vec_avx2.h"

#include "cpp/ops/cpu/kernel_table.h"
