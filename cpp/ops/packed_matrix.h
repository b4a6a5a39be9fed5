// Weights as a backend's products read them.
#ifndef FORERUN_CPP_OPS_PACKED_MATRIX_H_
#define FORERUN_CPP_OPS_PACKED_MATRIX_H_

#include <cstdint>

#include "cpp/ops/weight_format.h"

namespace forerun {

// A [num_outputs, num_inputs] weight in its Ops' own layout. The Ops must outlive it; it keeps the
// memory of weights that are gone.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  int num_outputs() const { return num_outputs_; }
  int num_inputs() const { return num_inputs_; }
  virtual std::int64_t num_bytes() const = 0;
  virtual void AddBytes(WeightBytes& bytes) const = 0;

 protected:
  PackedMatrix(int num_outputs, int num_inputs)
      : num_outputs_(num_outputs), num_inputs_(num_inputs) {}

 private:
  int num_outputs_, num_inputs_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_PACKED_MATRIX_H_
