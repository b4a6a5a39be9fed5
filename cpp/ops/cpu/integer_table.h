// The table of one instruction set. Included last by each integer_kernels_*.cc.
#ifndef FORERUN_CPP_OPS_CPU_INTEGER_TABLE_H_
#define FORERUN_CPP_OPS_CPU_INTEGER_TABLE_H_

#include "cpp/ops/cpu/integer_kernels.h"
#include "cpp/ops/cpu/integer_weights.h"
#include "cpp/ops/cpu/matmul_kernel.h"
#include "cpp/ops/cpu/quantize_row.h"
#include "cpp/ops/cpu/quantize_weights.h"

#define FORERUN_QUOTED(name) #name
#define FORERUN_NAME_OF(name) FORERUN_QUOTED(name)

namespace forerun::FORERUN_ISA {

const IntegerKernels kIntegerKernels = {
    .name = FORERUN_NAME_OF(FORERUN_ISA),
    .matmul = {nullptr, nullptr, MatMul<IntegerWeights<WeightFormat::kInt8>>,
               MatMul<IntegerWeights<WeightFormat::kInt4>>,
               MatMul<IntegerWeights<WeightFormat::kInt4Min>>,
               MatMul<IntegerWeights<WeightFormat::kInt5>>,
               MatMul<IntegerWeights<WeightFormat::kInt5Min>>,
               MatMul<IntegerWeights<WeightFormat::kInt4K>>,
               MatMul<IntegerWeights<WeightFormat::kInt5K>>,
               MatMul<IntegerWeights<WeightFormat::kInt6K>>,
               MatMul<IntegerWeights<WeightFormat::kInt4Zero>>},
    .quantize_row = QuantizeRow,
    .fit_scales = FitScales,
    .store_int8 = StoreIntegers<8>,
    .store_int4 = StoreIntegers<4>,
};

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_INTEGER_TABLE_H_
