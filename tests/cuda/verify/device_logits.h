// Logits in the memory of a GPU.
#ifndef FORERUN_TESTS_CUDA_VERIFY_DEVICE_LOGITS_H_
#define FORERUN_TESTS_CUDA_VERIFY_DEVICE_LOGITS_H_

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <span>

#include "tests/cuda/verify/random_step.h"

namespace forerun::testing {

template <typename T>
class DeviceValues {
 public:
  explicit DeviceValues(std::span<const T> values) {
    EXPECT_EQ(cudaMalloc(&data_, values.size_bytes() + 1), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  DeviceValues(const DeviceValues&) = delete;
  DeviceValues& operator=(const DeviceValues&) = delete;
  ~DeviceValues() { cudaFree(data_); }

  const T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

class DeviceRows {
 public:
  explicit DeviceRows(const RandomLogits& logits) : values_(logits.values()), rows_(logits.rows()) {
    rows_.data = values_.data();
  }
  ConstRows rows() const { return rows_; }

 private:
  const DeviceValues<float> values_;
  ConstRows rows_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CUDA_VERIFY_DEVICE_LOGITS_H_
