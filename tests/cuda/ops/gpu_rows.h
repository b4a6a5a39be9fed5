// Rows of the host and of the GPU, and random ones, for tests of operations on a GPU.
#ifndef FORERUN_TESTS_CUDA_OPS_GPU_ROWS_H_
#define FORERUN_TESTS_CUDA_OPS_GPU_ROWS_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpp/ops/ops.h"
#include "cpp/tensor/float16.h"
#include "cpp/tensor/tensor.h"
#include "tests/cpp/testing/random_floats.h"

namespace forerun::cuda {

using Random = RandomFloats;

// Dense rows of the host.
struct HostRows {
  HostRows(int rows_, int cols_)
      : rows(rows_),
        cols(cols_),
        values(static_cast<std::size_t>(rows_) * cols_, std::numeric_limits<float>::quiet_NaN()) {}
  HostRows(Random& random, int rows_, int cols_, float deviation = 1.0f) : HostRows(rows_, cols_) {
    for (float& value : values) value = random.Normal(deviation);
  }

  float* row(int r) { return values.data() + static_cast<std::size_t>(r) * cols; }
  const float* row(int r) const { return values.data() + static_cast<std::size_t>(r) * cols; }
  HostRows Slice(int begin, int count) const {
    HostRows slice(count, cols);
    std::copy_n(row(begin), slice.values.size(), slice.values.begin());
    return slice;
  }
  // A row of others.
  void Append(const HostRows& from, int r) {
    values.insert(values.end(), from.row(r), from.row(r) + cols);
    ++rows;
  }

  int rows, cols;
  std::vector<float> values;
};

// Rows on the GPU with some columns more, which are NaN, and which stay so.
class GpuRows {
 public:
  GpuRows(Memory& memory, int rows, int cols, int padding = 0)
      : GpuRows(memory, HostRows(rows, cols), padding) {}
  GpuRows(Memory& memory, const HostRows& from, int padding = 0)
      : memory_(memory), cols_(from.cols), padded_(from.rows, from.cols + padding) {
    for (int r = 0; r < from.rows; ++r) {
      if (from.cols > 0) std::copy_n(from.row(r), from.cols, padded_.row(r));
    }
    buffer_ = AlignedBuffer(memory, num_bytes());
    if (num_bytes() > 0) memory.Upload(buffer_.as<float>(), padded_.values.data(), num_bytes());
  }

  operator Rows() const { return view(); }       // NOLINT(google-explicit-constructor)
  operator ConstRows() const { return view(); }  // NOLINT(google-explicit-constructor)
  Rows view() const { return {buffer_.as<float>(), padded_.rows, cols_, padded_.cols}; }
  HostRows Download() {
    if (num_bytes() > 0) memory_.Download(padded_.values.data(), buffer_.as<float>(), num_bytes());
    HostRows out(padded_.rows, cols_);
    for (int r = 0; r < padded_.rows; ++r) {
      std::copy_n(padded_.row(r), cols_, out.row(r));
      for (int c = cols_; c < padded_.cols; ++c) {
        EXPECT_TRUE(std::isnan(padded_.row(r)[c])) << "written past a row's end";
      }
    }
    return out;
  }

 private:
  std::size_t num_bytes() const { return sizeof(float) * padded_.values.size(); }

  Memory& memory_;
  int cols_;
  HostRows padded_;
  AlignedBuffer buffer_;
};

inline float Rounded(float x) { return BFloat16ToFloat(FloatToBFloat16(x)); }

}  // namespace forerun::cuda

#endif  // FORERUN_TESTS_CUDA_OPS_GPU_ROWS_H_
