// The table of one instruction set. Included last by each kernels_*.cc.
#ifndef FORERUN_CPP_OPS_CPU_KERNEL_TABLE_H_
#define FORERUN_CPP_OPS_CPU_KERNEL_TABLE_H_

#include "cpp/ops/cpu/attention_kernel.h"
#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/cpu/matmul_kernel.h"
#include "cpp/ops/cpu/row_kernels.h"

namespace forerun::FORERUN_ISA {

#if defined(FORERUN_HAS_BFLOAT16_DOT)
using BFloat16Product = BFloat16Dot;

// An odd last value is paired with 0.
inline void RoundRow(const float* x, int n, std::uint16_t* out) {
  EachVector(
      n, [&](int i) { StoreRounded(out + i, Load(x + i), kLanes); },
      [&](int i, int count) {
        StoreRounded(out + i, LoadPartial(x + i, count), count + count % 2);
      });
}
constexpr auto kRoundRow = &RoundRow;
#else
using BFloat16Product = BFloat16Weights;
constexpr void (*kRoundRow)(const float*, int, std::uint16_t*) = nullptr;
#endif

const CpuKernels kKernels = {
    .matmul_bfloat16 = MatMul<BFloat16Product>,
    .matmul_float32 = MatMul<Float32Weights>,
    .round_row = kRoundRow,
    .attention = Attention,
    .join_attention = JoinAttention,
    .rms_norm = RmsNorm,
    .rope = Rope,
    .gate = Gate,
    .add = AddRow,
    .scale = ScaleRow,
    .soft_cap = SoftCap,
};

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_KERNEL_TABLE_H_
