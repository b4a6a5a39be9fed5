#include "cuda/library/tensor_verifier.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "cuda/check_cuda.h"
#include "cuda/library/find_gpu.h"
#include "cuda/use_gpu.h"
#include "cuda/verify/copy_elements.h"
#include "cuda/verify/cuda_verifier.h"
#include "cuda/verify/step_buffer.h"
#include "cuda/verify/top_rows.h"

namespace forerun::cuda {
namespace {

class GpuTensorVerifier : public TensorVerifier {
 public:
  std::span<const Outcome> Verify(const DeviceTensor& logits,
                                  std::span<const SampleRequest> requests) override {
    const UseGpu use;
    CudaVerifier& verifier =
        VerifierFor(logits.stream, {.vocab_size = logits.cols,
                                    .max_requests = static_cast<int>(requests.size()),
                                    .max_rows = logits.rows});
    verifier.Begin(Dense(logits), logits.rows, requests);
    return verifier.Finish();
  }

  void Top(const DeviceTensor& logits, int count, std::span<TopToken> out) override {
    if (count > kMaxTopTokens) {
      throw InvalidArgument(
          "count", std::to_string(count),
          "at most " + std::to_string(kMaxTopTokens) + " tokens of logits on a GPU");
    }
    const UseGpu use;
    CudaVerifier& verifier = VerifierFor(
        logits.stream, {.vocab_size = logits.cols, .max_requests = 1, .max_rows = logits.rows});
    verifier.StartTop(Dense(logits), logits.rows, count, /*begin=*/0);
    verifier.FinishTop(out);
  }

  void Download(const DeviceTensor& from, void* to) override {
    const UseGpu use;
    const std::size_t num_bytes = CopyToDense(from);
    if (num_bytes == 0) return;
    const auto stream = static_cast<cudaStream_t>(from.stream);
    CheckCuda(cudaMemcpyAsync(to, dense_.data(), num_bytes, cudaMemcpyDeviceToHost, stream),
              "a tensor's elements on the host");
    CheckCuda(cudaStreamSynchronize(stream), "a tensor's elements on the host");
  }

  void* Upload(std::span<const std::byte> bytes) override {
    const UseGpu use;
    const std::string wanted = std::to_string(bytes.size()) + " bytes of GPU memory";
    void* data = nullptr;
    CheckCuda(cudaMalloc(&data, std::max<std::size_t>(bytes.size(), 1)), wanted);
    cudaError_t status = cudaMemcpy(data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
    // From pageable memory that may return before the end of the copy, for which only the default
    // stream would wait.
    if (status == cudaSuccess) status = cudaStreamSynchronize(nullptr);
    if (status != cudaSuccess) cudaFree(data);
    CheckCuda(status, wanted);
    return data;
  }
  void Free(void* data) noexcept override {
    const UseGpu use;
    cudaFree(data);
  }

 private:
  static constexpr std::size_t kMaxVerifiers = 8;

  struct Sized {
    VerifierLimits limits;
    std::unique_ptr<CudaVerifier> verifier;
  };

  // One for `needed`, which has room to grow, so that most calls allocate nothing.
  CudaVerifier& VerifierFor(void* stream, const VerifierLimits& needed) {
    const auto key = std::pair(stream, needed.vocab_size);
    if (!verifiers_.contains(key) && verifiers_.size() == kMaxVerifiers) verifiers_.clear();
    Sized& sized = verifiers_[key];
    const VerifierLimits had = sized.limits;
    if (sized.verifier == nullptr || had.max_requests < needed.max_requests ||
        had.max_rows < needed.max_rows) {
      sized = {};  // frees its memory
      const VerifierLimits roomy = {
          .vocab_size = needed.vocab_size,
          .max_requests = std::max(needed.max_requests, 2 * had.max_requests),
          .max_rows = std::max(needed.max_rows, 2 * had.max_rows)};
      try {
        sized = MakeSized(stream, roomy);
      } catch (const DeviceError&) {  // perhaps there is memory for less
        sized = MakeSized(stream, needed);
      }
    }
    return *sized.verifier;
  }

  static Sized MakeSized(void* stream, const VerifierLimits& limits) {
    return {limits, std::make_unique<CudaVerifier>(limits, static_cast<cudaStream_t>(stream))};
  }

  // Rows that kernels can read: the tensor itself where they can read it, else a copy.
  DeviceLogits Dense(const DeviceTensor& tensor) {
    const bool is_aligned =
        reinterpret_cast<std::uintptr_t>(tensor.data) % SizeOf(tensor.dtype) == 0;
    if (is_aligned && (tensor.col_stride == 1 || tensor.cols == 1)) {
      return {tensor.data, tensor.dtype, tensor.row_stride};
    }
    CopyToDense(tensor);
    return {dense_.data(), tensor.dtype, tensor.cols};
  }

  // Into dense_, on the tensor's stream; returns the number of bytes.
  std::size_t CopyToDense(const DeviceTensor& tensor) {
    const auto element_bytes = static_cast<std::int64_t>(SizeOf(tensor.dtype));
    const std::size_t num_bytes =
        std::size_t{SizeOf(tensor.dtype)} * static_cast<std::size_t>(tensor.rows) * tensor.cols;
    dense_.Grow(num_bytes);
    const StridedElements elements = {.data = tensor.data,
                                      .element_bytes = static_cast<int>(element_bytes),
                                      .rows = tensor.rows,
                                      .cols = tensor.cols,
                                      .row_stride = tensor.row_stride * element_bytes,
                                      .col_stride = tensor.col_stride * element_bytes};
    CheckCuda(CopyElements(elements, dense_.data(), static_cast<cudaStream_t>(tensor.stream)),
              "a dense copy of a tensor");
    return num_bytes;
  }

  std::map<std::pair<void*, int>, Sized> verifiers_;  // by stream and vocabulary
  DeviceBuffer dense_{0};
};

}  // namespace

std::unique_ptr<TensorVerifier> OpenTensorVerifier() {
  FindGpu();
  return std::make_unique<GpuTensorVerifier>();
}

}  // namespace forerun::cuda
