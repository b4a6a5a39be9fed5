// Tensors of other libraries, borrowed through DLPack.
//
// The structs are DLPack's binary interface (dmlc.github.io/dlpack, version 0: capsules named
// "dltensor"), of which every version since has kept the layout.
#ifndef FORERUN_PYTHON_BINDINGS_DLPACK_H_
#define FORERUN_PYTHON_BINDINGS_DLPACK_H_

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpp/tensor/dtype.h"

namespace forerun {

namespace dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : std::uint8_t { kInt = 0, kFloat = 2, kBFloat = 4 };

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t type_code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: dense and row-major
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* manager_context;
  void (*deleter)(ManagedTensor*);
};

}  // namespace dlpack

class BorrowedTensor {
 public:
  // Takes over a capsule that nothing else has consumed. A tensor on a GPU is complete on `stream`,
  // a handle of CUDA's. REQUIRES: the GIL, here and at destruction.
  BorrowedTensor(const pybind11::capsule& capsule, std::uintptr_t stream);
  BorrowedTensor(BorrowedTensor&& other) noexcept;
  BorrowedTensor(const BorrowedTensor&) = delete;
  BorrowedTensor& operator=(const BorrowedTensor&) = delete;
  ~BorrowedTensor();

  int ndim() const { return managed_->tensor.ndim; }
  std::int64_t extent(int dimension) const { return managed_->tensor.shape[dimension]; }
  std::int64_t stride(int dimension) const;  // in elements
  // Absent: a type that is not one of DType's signed integers and floats.
  std::optional<DType> dtype() const;
  // "float32", "int64", "uint8", ...
  std::string dtype_name() const;
  bool is_on_host() const;
  void* stream() const { return reinterpret_cast<void*>(stream_); }
  bool is_on_cuda() const { return managed_->tensor.device_type == dlpack::kCuda; }
  // "cpu", "cuda:0", "DLPack device type 8".
  std::string device_name() const;
  // Need not be aligned.
  const std::byte* data() const {
    return static_cast<const std::byte*>(managed_->tensor.data) + managed_->tensor.byte_offset;
  }

 private:
  dlpack::ManagedTensor* managed_;
  std::uintptr_t stream_;
};

// A capsule of a tensor; `owner` lives as long as what consumes it. Strides are in elements.
struct ExportedTensor {
  void* data;
  dlpack::DeviceType device_type;
  dlpack::TypeCode type_code;
  std::uint8_t bits;
  std::vector<std::int64_t> shape, strides;
  std::uint64_t byte_offset;
  std::shared_ptr<void> owner;
};
pybind11::capsule ExportTensor(const ExportedTensor& tensor);

}  // namespace forerun

#endif  // FORERUN_PYTHON_BINDINGS_DLPACK_H_
