#ifndef FORERUN_CPP_TENSOR_TENSOR_H_
#define FORERUN_CPP_TENSOR_TENSOR_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpp/tensor/dtype.h"

namespace forerun {

// Borrowed memory with a type and a shape, dense and row-major. Its owner decides how long it
// lives.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;

  std::int64_t num_elements() const {
    std::int64_t count = 1;
    for (std::int64_t extent : shape) count *= extent;
    return count;
  }
};

// Borrowed float rows: row r starts at data + r * stride and has `cols` values.
template <typename T>
struct BasicRows {
  T* data = nullptr;
  int rows = 0;
  int cols = 0;
  std::int64_t stride = 0;

  BasicRows() = default;
  BasicRows(T* data_, int rows_, int cols_) : BasicRows(data_, rows_, cols_, cols_) {}
  BasicRows(T* data_, int rows_, int cols_, std::int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  // Mutable rows serve where constant ones are asked for.
  template <typename U>
    requires(std::is_const_v<T> && std::is_same_v<const U, T>)
  BasicRows(const BasicRows<U>& other)  // NOLINT(google-explicit-constructor)
      : BasicRows(other.data, other.rows, other.cols, other.stride) {}

  T* row(int r) const { return data + r * stride; }
  // Columns [begin, begin + count) of every row.
  BasicRows Columns(int begin, int count) const { return {data + begin, rows, count, stride}; }
  BasicRows First(int count) const { return {data, count, cols, stride}; }
};
using Rows = BasicRows<float>;
using ConstRows = BasicRows<const float>;

// Owned, 64-byte aligned, uninitialised memory; grows when asked and never shrinks.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t num_bytes) { Grow(num_bytes); }

  // Contents are lost when it grows.
  void Grow(std::size_t num_bytes);

  std::size_t num_bytes() const { return num_bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t num_bytes_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_TENSOR_TENSOR_H_
