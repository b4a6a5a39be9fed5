// The portable kernels under another name, grouped as the widest instruction set groups rows and
// tiles, with its product of bfloat16 pairs acted out: so that this much of it is tested on every
// machine.
#define FORERUN_ISA wide_test
#define FORERUN_VEC_HEADER "tests/cpp/ops/vec_wide.h"
#define FORERUN_NUM_REGISTERS 32
#define FORERUN_MAX_TILE_ROWS 8
#define FORERUN_HAS_BFLOAT16_DOT 1

#include "tests/cpp/ops/wide_kernels.h"
// The table comes last.
#include "cpp/ops/cpu/kernel_table.h"
