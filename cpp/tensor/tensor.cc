#include "cpp/tensor/tensor.h"

#include <new>

namespace forerun {

void AlignedBuffer::Grow(std::size_t num_bytes) {
  if (num_bytes <= num_bytes_) return;
  const std::size_t rounded = (num_bytes + 63) / 64 * 64;
  void* data = std::aligned_alloc(64, rounded);
  if (data == nullptr) throw std::bad_alloc();
  data_.reset(static_cast<std::byte*>(data));
  num_bytes_ = rounded;
}

}  // namespace forerun
