#define FORERUN_ISA avx512vnni
#define FORERUN_VEC_HEADER "cpp/util/simd/vec_avx512.h"
#define FORERUN_INTS_HEADER "cpp/util/simd/ints_avx512vnni.h"

#include "cpp/ops/cpu/integer_table.h"
