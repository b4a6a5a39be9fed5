#define FORERUN_ISA avxvnni
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_avx2.h"
#define FORERUN_INTS_HEADER "cpp/util/simd/dots_avx2.h"
#define FORERUN_HAS_VNNI 1

#include "cpp/ops/cpu/integer_table.h"
