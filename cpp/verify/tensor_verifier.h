// Verification of logits that are in the tensors of other libraries, in a device's memory and on a
// stream of theirs: what forerun.kernels needs of a device.
#ifndef FORERUN_CPP_VERIFY_TENSOR_VERIFIER_H_
#define FORERUN_CPP_VERIFY_TENSOR_VERIFIER_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "cpp/tensor/dtype.h"
#include "cpp/verify/verifier.h"

namespace forerun {

// A matrix in device memory, aligned to anything and with any strides.
struct DeviceTensor {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rows = 0, cols = 0;
  std::int64_t row_stride = 0, col_stride = 1;  // in elements
  // CUDA's handle of the stream on which it is complete; null: the default stream.
  void* stream = nullptr;
};

// One thread at a time. All calls wait for their results, and throw DeviceError.
class TensorVerifier {
 public:
  virtual ~TensorVerifier() = default;

  // As Verifier::Begin and Finish. Logits are float32, bfloat16 or float16.
  virtual std::span<const Outcome> Verify(const DeviceTensor& logits,
                                          std::span<const SampleRequest> requests) = 0;
  virtual void Top(const DeviceTensor& logits, int count, std::span<TopToken> out) = 0;

  // to [rows, cols] = from, dense, on the host.
  virtual void Download(const DeviceTensor& from, void* to) = 0;

  // A copy in device memory of bytes on the host, complete for every stream; to be freed.
  virtual void* Upload(std::span<const std::byte> bytes) = 0;
  virtual void Free(void* data) noexcept = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_TENSOR_VERIFIER_H_
