// Products with weights of integer formats: a table of functions per instruction set, as kernels.h
// has them, and by the same rules.
//
// Their results are the same on every instruction set, bit for bit, so which one runs is no part of
// an Isa: it is the fastest that the machine has, of those that its Isa does not rule out.
#ifndef FORERUN_CPP_OPS_CPU_INTEGER_KERNELS_H_
#define FORERUN_CPP_OPS_CPU_INTEGER_KERNELS_H_

#include <cstdint>

#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/weight_format.h"

namespace forerun {

// Activations of kWeightGroup inputs: x = scale * value.
struct alignas(16) QuantizedGroup {
  std::int8_t values[kWeightGroup];  // in [-127, 127]
  float scale;                       // NaN where an activation is not finite
  float weighted_sum;                // scale * the sum of the values
  std::int32_t neg_sum;              // minus that sum
  std::int16_t neg_halves[2];        // likewise, of the first and the last half of the values
};

struct IntegerKernels {
  const char* name;

  // By WeightFormat; null where it has no integers. MatMulTask::x: [num_rows, num_inputs filled up
  // to kPaddedInputs, in groups] QuantizedGroup.
  void (*matmul[kNumWeightFormats])(const MatMulTask& task);
  // x[n] -> as many groups.
  void (*quantize_row)(const float* x, int n, QuantizedGroup* out);

  // Of a group of weights, [kWeightGroup, 16]: the scales of kInt4, and the integers of weights
  // that are divided by these, as weight_tile.h says.
  void (*fit_scales)(const float* weights, float* scales);
  void (*store_int8)(const float* weights, const float* divisors, std::uint8_t* loads);
  void (*store_int4)(const float* weights, const float* divisors, std::uint8_t* loads);
};

namespace portable {
extern const IntegerKernels kIntegerKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const IntegerKernels kIntegerKernels;
}
namespace avxvnni {
extern const IntegerKernels kIntegerKernels;
}
namespace avx512 {
extern const IntegerKernels kIntegerKernels;
}
namespace avx512vnni {
extern const IntegerKernels kIntegerKernels;
}
#endif

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_INTEGER_KERNELS_H_
