// Integers and scales of a matrix, in memory of their own.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_INTEGER_MATRIX_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_INTEGER_MATRIX_H_

#include <cstdint>

#include "cpp/ops/weight_source.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

// Uninitialised memory for what an IntegerView of the format has.
class IntegerMatrix {
 public:
  IntegerMatrix(WeightFormat format, int num_outputs, int num_inputs);

  const IntegerView& view() const { return view_; }

  // Those of one output. REQUIRES: the format has them.
  std::int8_t* values(int output) const {
    return values_.as<std::int8_t>() + std::int64_t{output} * view_.num_inputs;
  }
  std::uint16_t* scales(int output) const {
    return scales_.as<std::uint16_t>() + std::int64_t{output} * view_.num_groups();
  }
  std::uint16_t* minima(int output) const {
    return minima_.as<std::uint16_t>() + std::int64_t{output} * view_.num_groups();
  }

 private:
  AlignedBuffer values_, scales_, minima_;
  IntegerView view_;
};

// out[num_inputs] = the weights of one output: in float32, each operation rounded, as a packed
// matrix unpacks them.
void Dequantize(const IntegerView& view, int output, float* out);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_INTEGER_MATRIX_H_
