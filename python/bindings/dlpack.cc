#include "python/bindings/dlpack.h"

#include <utility>

namespace forerun {

namespace py = pybind11;

BorrowedTensor::BorrowedTensor(const py::capsule& capsule, std::uintptr_t stream)
    : stream_(stream) {
  void* const pointer = PyCapsule_GetPointer(capsule.ptr(), "dltensor");
  if (pointer == nullptr) throw py::error_already_set();
  managed_ = static_cast<dlpack::ManagedTensor*>(pointer);
  // Tells the producer that the tensor is ours to delete.
  if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
}

BorrowedTensor::BorrowedTensor(BorrowedTensor&& other) noexcept
    : managed_(std::exchange(other.managed_, nullptr)), stream_(other.stream_) {}

BorrowedTensor::~BorrowedTensor() {
  if (managed_ != nullptr && managed_->deleter != nullptr) managed_->deleter(managed_);
}

std::int64_t BorrowedTensor::stride(int dimension) const {
  const dlpack::Tensor& tensor = managed_->tensor;
  if (tensor.strides != nullptr) return tensor.strides[dimension];
  std::int64_t stride = 1;
  for (int i = dimension + 1; i < tensor.ndim; ++i) stride *= tensor.shape[i];
  return stride;
}

std::optional<DType> BorrowedTensor::dtype() const {
  const dlpack::Tensor& tensor = managed_->tensor;
  if (tensor.lanes != 1) return std::nullopt;
  if (tensor.type_code == dlpack::kFloat && tensor.bits == 32) return DType::kFloat32;
  if (tensor.type_code == dlpack::kFloat && tensor.bits == 16) return DType::kFloat16;
  if (tensor.type_code == dlpack::kBFloat && tensor.bits == 16) return DType::kBFloat16;
  if (tensor.type_code == dlpack::kInt && tensor.bits == 64) return DType::kInt64;
  if (tensor.type_code == dlpack::kInt && tensor.bits == 32) return DType::kInt32;
  return std::nullopt;
}

std::string BorrowedTensor::dtype_name() const {
  static constexpr const char* kNames[] = {"int",    "uint",    "float", "opaque",
                                           "bfloat", "complex", "bool"};
  const dlpack::Tensor& tensor = managed_->tensor;
  if (tensor.type_code >= std::size(kNames)) {
    return "DLPack type code " + std::to_string(tensor.type_code);
  }
  std::string name = kNames[tensor.type_code] + std::to_string(tensor.bits);
  if (tensor.lanes != 1) name += "x" + std::to_string(tensor.lanes);
  return name;
}

bool BorrowedTensor::is_on_host() const {
  return managed_->tensor.device_type == dlpack::kCpu ||
         managed_->tensor.device_type == dlpack::kCudaHost;
}

std::string BorrowedTensor::device_name() const {
  if (is_on_host()) return "cpu";
  if (is_on_cuda()) return "cuda:" + std::to_string(managed_->tensor.device_id);
  return "DLPack device type " + std::to_string(managed_->tensor.device_type);
}

namespace {

struct Export {
  ExportedTensor tensor;
  dlpack::ManagedTensor managed;
};

// Of a capsule that nothing has consumed.
void DeleteCapsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, "dltensor") == 0) return;
  auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
  managed->deleter(managed);
}

}  // namespace

py::capsule ExportTensor(const ExportedTensor& tensor) {
  auto* exported = new Export{tensor, {}};
  exported->managed = {
      {tensor.data, tensor.device_type, 0, static_cast<std::int32_t>(tensor.shape.size()),
       tensor.type_code, tensor.bits, 1, exported->tensor.shape.data(),
       exported->tensor.strides.data(), tensor.byte_offset},
      exported,
      [](dlpack::ManagedTensor* managed) {
        delete static_cast<Export*>(managed->manager_context);
      }};
  return py::capsule(&exported->managed, "dltensor", &DeleteCapsule);
}

}  // namespace forerun
