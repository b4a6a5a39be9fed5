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
  std::int8_t* values(int output) const { return Row<std::int8_t>(values_, output); }
  std::uint16_t* scales(int output) const { return Row<std::uint16_t>(scales_, output); }
  std::uint16_t* minima(int output) const { return Row<std::uint16_t>(minima_, output); }
  std::uint8_t* sub_scales(int output) const { return Row<std::uint8_t>(sub_scales_, output); }
  std::uint8_t* sub_minima(int output) const { return Row<std::uint8_t>(sub_minima_, output); }
  float* wide_scales(int output) const { return Row<float>(wide_scales_, output); }
  std::uint8_t* zeros(int output) const { return Row<std::uint8_t>(zeros_, output); }

 private:
  template <typename T>
  T* Row(const AlignedBuffer& buffer, int output) const {
    return reinterpret_cast<T*>(buffer.as<std::byte>() +
                                buffer.num_bytes() / view_.num_outputs * output);
  }

  AlignedBuffer values_, scales_, minima_, sub_scales_, sub_minima_, wide_scales_, zeros_;
  IntegerView view_;
};

// out[num_inputs] = the weights of one output: in float32, each operation rounded, as a packed
// matrix unpacks them.
void Dequantize(const IntegerView& view, int output, float* out);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_INTEGER_MATRIX_H_
