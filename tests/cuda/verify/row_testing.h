// Device memory, and batches of rows, for tests of the kernels on rows.
#ifndef FORERUN_TESTS_CUDA_VERIFY_ROW_TESTING_H_
#define FORERUN_TESTS_CUDA_VERIFY_ROW_TESTING_H_

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "cpp/sampling/logits_row.h"
#include "cpp/tensor/dtype.h"
#include "cpp/verify/sample_batch.h"
#include "cuda/emulation/in_every_order.h"
#include "cuda/verify/row_state.h"
#include "tests/cuda/build_kind.h"

namespace forerun::cuda::testing {

using forerun::testing::DetectsRaces;
using forerun::testing::IsPlainBuild;

inline void Expect(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    Expect(
        cudaMalloc(reinterpret_cast<void**>(&data_), std::max<std::size_t>(size, 1) * sizeof(T)));
  }
  explicit DeviceArray(std::span<const T> from) : DeviceArray(from.size()) { Upload(from); }
  explicit DeviceArray(const std::vector<T>& from) : DeviceArray(std::span<const T>(from)) {}
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  void Upload(std::span<const T> from) const {
    if (from.empty()) return;
    Expect(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  // For elements that a kernel need not write, and that are downloaded with the others.
  void Poison() const { Expect(cudaMemset(data_, 0xff, size_ * sizeof(T))); }
  std::vector<T> Download() const {
    std::vector<T> host(size_);
    if (size_ == 0) return host;
    Expect(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

// The bits of a value as a type stores it, and the value that it stores.
inline std::vector<std::byte> Stored(float value, DType dtype) {
  std::vector<std::byte> bytes(SizeOf(dtype));
  if (dtype == DType::kFloat32) {
    std::memcpy(bytes.data(), &value, 4);
  } else if (dtype == DType::kBFloat16) {
    const std::uint16_t bits = FloatToBFloat16(value);
    std::memcpy(bytes.data(), &bits, 2);
  } else {
    const __half half = __float2half(value);
    std::memcpy(bytes.data(), &half, 2);
  }
  return bytes;
}
inline float RoundedTo(float value, DType dtype) {
  if (dtype == DType::kFloat32) return value;
  std::uint16_t bits;
  std::memcpy(&bits, Stored(value, dtype).data(), 2);
  return dtype == DType::kBFloat16 ? BFloat16ToFloat(bits) : Float16ToFloat(bits);
}

// Rows of logits on the device: `offset` elements after an aligned address, `padding` elements
// between rows. What is no logit is NaN.
class DeviceRows {
 public:
  // Rounds the logits to what is stored.
  DeviceRows(std::vector<std::vector<float>>& rows, DType dtype, int offset, int padding)
      : dtype_(dtype),
        offset_(offset),
        stride_(static_cast<int>(rows[0].size()) + padding),
        bytes_(Pack(rows)) {}

  DeviceLogits logits() const {
    return {bytes_.data() + offset_ * SizeOf(dtype_), dtype_, stride_};
  }
  std::vector<std::byte> Download() const { return bytes_.Download(); }

 private:
  std::vector<std::byte> Pack(std::vector<std::vector<float>>& rows) const {
    std::vector<std::byte> bytes((offset_ + rows.size() * stride_) * SizeOf(dtype_),
                                 std::byte{0xff});
    for (std::size_t r = 0; r < rows.size(); ++r) {
      for (std::size_t i = 0; i < rows[r].size(); ++i) {
        const std::vector<std::byte> stored = Stored(rows[r][i], dtype_);
        const std::size_t at = (offset_ + r * stride_ + i) * stored.size();
        std::memcpy(bytes.data() + at, stored.data(), stored.size());
        rows[r][i] = RoundedTo(rows[r][i], dtype_);
      }
    }
    return bytes;
  }

  const DType dtype_;
  const int offset_, stride_;
  const DeviceArray<std::byte> bytes_;
};

// The arrays of a batch on the device.
class DeviceBatch {
 public:
  explicit DeviceBatch(const SampleBatch& batch)
      : rules_(batch.rules),
        rows_(batch.rows),
        tokens_(batch.tokens),
        parents_(batch.parents),
        edits_(batch.edits),
        bans_(batch.bans),
        masks_(batch.masks),
        scored_tokens_(batch.scored_tokens),
        logprob_ids_(batch.logprob_ids),
        arrays_(batch.arrays()) {
    arrays_.rules = rules_.data();
    arrays_.rows = rows_.data();
    arrays_.tokens = tokens_.data();
    arrays_.parents = parents_.data();
    arrays_.edits = edits_.data();
    arrays_.bans = bans_.data();
    arrays_.masks = masks_.data();
    arrays_.scored_tokens = scored_tokens_.data();
    arrays_.logprob_ids = logprob_ids_.data();
  }

  const SampleArrays& arrays() const { return arrays_; }

 private:
  const DeviceArray<SampleRule> rules_;
  const DeviceArray<SampleRow> rows_;
  const DeviceArray<TokenId> tokens_;
  const DeviceArray<std::int32_t> parents_;
  const DeviceArray<TokenEdit> edits_;
  const DeviceArray<TokenId> bans_;
  const DeviceArray<std::uint32_t> masks_;
  const DeviceArray<TokenId> scored_tokens_, logprob_ids_;
  SampleArrays arrays_;
};

// The rule of a request as a batch holds it, without draft and edits.
inline SampleRule RuleOf(const SamplingRule& rule, int output_index) {
  SampleRule out = {};
  const double inverse = InverseTemperature(rule.temperature);
  out.inverse_temperature = rule.temperature == 0.0 ? 0.0 : inverse;
  out.top_p = rule.top_p;
  out.min_p_depth = std::log(rule.min_p) / inverse;
  out.seed = rule.seed;
  out.top_k = std::max(rule.top_k, 0);
  const AcceptanceMethod method =
      rule.temperature == 0.0 ? AcceptanceMethod::kCoupled : rule.acceptance_method;
  out.method = static_cast<std::int32_t>(method);
  out.first_output_index = output_index;
  out.mask = out.drawn_row = out.num_top = -1;
  out.samples = 1;
  out.penalties = {.repetition = 1.0f, .frequency = 0.0f, .presence = 0.0f};
  return out;
}

}  // namespace forerun::cuda::testing

#endif  // FORERUN_TESTS_CUDA_VERIFY_ROW_TESTING_H_
