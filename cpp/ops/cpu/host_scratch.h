// Scratch of the CPU's operations.
#ifndef FORERUN_CPP_OPS_CPU_HOST_SCRATCH_H_
#define FORERUN_CPP_OPS_CPU_HOST_SCRATCH_H_

#include <cstddef>

#include "cpp/tensor/tensor.h"

namespace forerun {

// Grows when asked and never shrinks.
class HostScratch {
 public:
  // Contents are lost when it grows.
  void Grow(std::size_t num_bytes) {
    if (num_bytes > buffer_.num_bytes()) buffer_ = AlignedBuffer(HostMemory(), num_bytes);
  }
  template <typename T>
  T* as() const {
    return buffer_.as<T>();
  }
  Rows AsRows(int rows, int cols) {
    Grow(sizeof(float) * static_cast<std::size_t>(rows) * cols);
    return {as<float>(), rows, cols};
  }

 private:
  AlignedBuffer buffer_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_HOST_SCRATCH_H_
