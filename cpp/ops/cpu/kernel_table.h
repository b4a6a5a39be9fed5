// The table of one instruction set. Included last by each isa_*.cc.
#ifndef FORERUN_CPP_OPS_CPU_KERNEL_TABLE_H_
#define FORERUN_CPP_OPS_CPU_KERNEL_TABLE_H_

#include "cpp/ops/cpu/attention_kernel.h"
#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/cpu/matmul_kernel.h"
#include "cpp/ops/cpu/row_kernels.h"

namespace forerun::FORERUN_ISA {

#if defined(FORERUN_HAS_BFLOAT16_DOT)
using BFloat16Product = BFloat16Dot;

// To nearest even, as the product's own conversion does; an odd last value is paired with 0.
inline void RoundRow(const float* x, int n, std::uint16_t* out) {
  const auto round = [&](V16 value, std::uint16_t* to, int count) {
    const __m256bh bits = _mm512_cvtneps_pbh(value.v);
    __builtin_memcpy(to, &bits, sizeof(std::uint16_t) * count);
  };
  EachVector(
      n, [&](int i) { round(Load(x + i), out + i, kLanes); },
      [&](int i, int count) { round(LoadPartial(x + i, count), out + i, count + count % 2); });
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
    .soft_cap = SoftCap,
};

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_KERNEL_TABLE_H_
