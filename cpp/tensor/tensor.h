#ifndef FORERUN_CPP_TENSOR_TENSOR_H_
#define FORERUN_CPP_TENSOR_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpp/tensor/dtype.h"
#include "cpp/tensor/memory.h"

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
  // Rows [begin, begin + count).
  BasicRows Slice(int begin, int count) const { return {row(begin), count, cols, stride}; }
};
using Rows = BasicRows<float>;
using ConstRows = BasicRows<const float>;

// Owned, 64-byte aligned, uninitialised memory of a fixed size. The Memory must outlive it.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  AlignedBuffer(Memory& memory, std::size_t num_bytes)
      : data_(num_bytes > 0 ? static_cast<std::byte*>(memory.Allocate(num_bytes)) : nullptr,
              Free{&memory}),
        num_bytes_(num_bytes) {}

  std::size_t num_bytes() const { return num_bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    Memory* memory;
    void operator()(std::byte* data) const { memory->Free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t num_bytes_ = 0;
};

// Floats that are written once, at load: norms, biases, tables. The Memory must outlive it.
class FloatVector {
 public:
  FloatVector() = default;
  FloatVector(Memory& memory, std::span<const float> values)
      : buffer_(memory, values.size_bytes()) {
    if (!values.empty()) memory.Upload(buffer_.as<float>(), values.data(), values.size_bytes());
  }

  bool empty() const { return buffer_.num_bytes() == 0; }
  int size() const { return static_cast<int>(buffer_.num_bytes() / sizeof(float)); }
  // Null when empty.
  const float* data() const { return buffer_.as<float>(); }

 private:
  AlignedBuffer buffer_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_TENSOR_TENSOR_H_
