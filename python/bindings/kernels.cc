#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/ops/cuda_library.h"
#include "cpp/sampling/draft_sampling.h"
#include "cpp/sampling/sampler.h"
#include "cpp/tensor/tensor.h"
#include "cpp/verify/tensor_verifier.h"
#include "cpp/verify/verifier.h"
#include "forerun/error.h"
#include "python/bindings/dlpack.h"
#include "python/bindings/gil.h"
#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

// The element at `from`, which need not be aligned.
template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// The GPU's, opened when it is needed first. Calls take turns.
class Gpu {
 public:
  static Gpu& Get() {
    // Never destroyed: CUDA's own state may be gone when the process ends.
    static Gpu& gpu = *new Gpu(OpenCudaLibrary().open_tensor_verifier());
    return gpu;
  }

  // call(the verifier), which must not acquire the GIL.
  template <typename Call>
  auto Run(const Call& call) {
    const std::lock_guard lock(mutex_);
    return call(*verifier_);
  }

 private:
  explicit Gpu(std::unique_ptr<TensorVerifier> verifier) : verifier_(std::move(verifier)) {}

  std::mutex mutex_;
  const std::unique_ptr<TensorVerifier> verifier_;
};

// A vector counts as one row.
DeviceTensor ViewOf(const BorrowedTensor& tensor) {
  const bool is_vector = tensor.ndim() == 1;
  return {.data = tensor.data(),
          .dtype = *tensor.dtype(),
          .rows = is_vector ? 1 : static_cast<int>(tensor.extent(0)),
          .cols = static_cast<int>(tensor.extent(is_vector ? 0 : 1)),
          .row_stride = is_vector ? 0 : tensor.stride(0),
          .col_stride = tensor.stride(is_vector ? 0 : 1),
          .stream = tensor.stream()};
}

// A vector or a matrix whose elements the host can read: a GPU's is copied.
class HostMatrix {
 public:
  explicit HostMatrix(const BorrowedTensor& tensor) : view_(ViewOf(tensor)) {
    if (!tensor.is_on_cuda()) return;
    copy_.resize(SizeOf(view_.dtype) * view_.rows * view_.cols);
    const ReleaseGil release;
    Gpu::Get().Run([&](TensorVerifier& gpu) { gpu.Download(view_, copy_.data()); });
    view_ = {.data = copy_.data(),
             .dtype = view_.dtype,
             .rows = view_.rows,
             .cols = view_.cols,
             .row_stride = view_.cols};
  }
  HostMatrix(const HostMatrix&) = delete;
  HostMatrix& operator=(const HostMatrix&) = delete;

  // visit(the address of an element) for a row's elements.
  template <typename Visit>
  void VisitRow(int row, const Visit& visit) const {
    const auto size = static_cast<std::int64_t>(SizeOf(view_.dtype));
    const auto* const first =
        static_cast<const std::byte*>(view_.data) + row * view_.row_stride * size;
    for (int i = 0; i < view_.cols; ++i) visit(first + i * view_.col_stride * size);
  }

  // Row `row` as floats, which it has. REQUIRES: to has room for cols().
  void ReadRow(int row, float* to) const {
    if (view_.dtype == DType::kBFloat16) {
      VisitRow(row,
               [&](const std::byte* from) { *to++ = BFloat16ToFloat(Load<std::uint16_t>(from)); });
    } else if (view_.dtype == DType::kFloat16) {
      VisitRow(row,
               [&](const std::byte* from) { *to++ = Float16ToFloat(Load<std::uint16_t>(from)); });
    } else {
      VisitRow(row, [&](const std::byte* from) { *to++ = Load<float>(from); });
    }
  }

  int rows() const { return view_.rows; }
  int cols() const { return view_.cols; }
  const DeviceTensor& view() const { return view_; }

 private:
  std::vector<std::byte> copy_;
  DeviceTensor view_;
};

// A matrix as float rows: its own memory where that is possible, else a copy.
class FloatRows {
 public:
  explicit FloatRows(const HostMatrix& matrix) {
    const DeviceTensor& view = matrix.view();
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(view.data) % alignof(float) == 0;
    if (view.dtype == DType::kFloat32 && is_aligned && (view.col_stride == 1 || view.cols == 1)) {
      rows_ = {static_cast<const float*>(view.data), view.rows, view.cols, view.row_stride};
      return;
    }
    copy_.resize(static_cast<std::size_t>(view.rows) * view.cols);
    for (int row = 0; row < view.rows; ++row) {
      matrix.ReadRow(row, copy_.data() + static_cast<std::int64_t>(row) * view.cols);
    }
    rows_ = {copy_.data(), view.rows, view.cols};
  }
  FloatRows(const FloatRows&) = delete;
  FloatRows& operator=(const FloatRows&) = delete;

  const ConstRows& rows() const { return rows_; }

 private:
  std::vector<float> copy_;
  ConstRows rows_;
};

// The elements of a vector, or of a matrix row by row.
std::vector<std::int64_t> ReadIntegers(const BorrowedTensor& tensor) {
  const HostMatrix matrix(tensor);
  std::vector<std::int64_t> values;
  for (int row = 0; row < matrix.rows(); ++row) {
    matrix.VisitRow(row, [&](const std::byte* from) {
      values.push_back(tensor.dtype() == DType::kInt64 ? Load<std::int64_t>(from)
                                                       : Load<std::int32_t>(from));
    });
  }
  return values;
}

SamplingRule MakeRule(double temperature, int top_k, double top_p, double min_p, std::uint64_t seed,
                      AcceptanceMethod method) {
  SamplingParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.min_p = min_p;
  CheckRuleOptions(params);
  SamplingRule rule = MakeSamplingRule(params, seed);
  rule.acceptance_method = method;
  return rule;
}

// `probs` [tokens, vocab]: row i has the probabilities that token i was drawn from. Of siblings,
// which are drawn from one row, that of the first counts. Absent: the tokens are certain.
DraftTree MakeDraft(const std::vector<TokenId>& tokens, const std::vector<std::int32_t>& parents,
                    std::optional<const BorrowedTensor*> probs) {
  DraftTree draft;
  std::optional<HostMatrix> rows;
  if (probs) rows.emplace(**probs);
  for (int i = 0; i < static_cast<int>(tokens.size()); ++i) {
    draft.Append(tokens[i], parents[i], 1.0f);
    if (!rows || !draft.RowAfter(parents[i]).empty()) continue;
    const std::span<float> row = draft.AddRowAfter(parents[i], rows->cols());
    rows->ReadRow(i, row.data());
    for (std::size_t token = 0; token < row.size(); ++token) {
      if (row[token] >= 0.0f && row[token] <= 1.0f) continue;
      throw InvalidArgument("probs",
                            std::to_string(row[token]) + " for token " + std::to_string(token) +
                                " in row " + std::to_string(i),
                            "probabilities from 0 to 1");
    }
    RoundDraftRow(row);
  }
  return draft;
}

// A batch of requests, and what is verified of it. REQUIRES: as many rules and output indices as
// drafts.
struct Requests {
  Requests(const std::vector<const DraftTree*>& drafts,
           const std::vector<const SamplingRule*>& rules, const std::vector<int>& output_indices) {
    for (std::size_t i = 0; i < drafts.size(); ++i) {
      SampleRequest& request = list.emplace_back();
      request.draft = drafts[i];
      request.rule = rules[i];
      request.first_output_index = output_indices[i];
      longest_path = std::max(longest_path, drafts[i]->depth());
    }
  }

  std::vector<SampleRequest> list;
  int longest_path = 0;
};

using IntArray = py::array_t<std::int32_t, py::array::c_style>;

// [requests, width], padded with -1.
IntArray MakePadded(std::size_t num_requests, int width) {
  IntArray array({static_cast<py::ssize_t>(num_requests), static_cast<py::ssize_t>(width)});
  std::fill_n(array.mutable_data(), array.size(), -1);
  return array;
}

// Tokens [requests, longest + 1], accepted nodes [requests, longest], numbers of tokens [requests],
// errors by request.
using VerifiedRows = std::tuple<IntArray, IntArray, IntArray, std::map<int, std::string>>;

VerifiedRows ToArrays(std::span<const Outcome> outcomes, int longest) {
  IntArray tokens = MakePadded(outcomes.size(), longest + 1);
  IntArray nodes = MakePadded(outcomes.size(), longest);
  IntArray counts(static_cast<py::ssize_t>(outcomes.size()));
  std::map<int, std::string> errors;
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const Verdict& verdict = outcomes[i].verdict;
    const auto row = static_cast<py::ssize_t>(i);
    std::ranges::copy(verdict.tokens, tokens.mutable_data() + row * (longest + 1));
    std::ranges::copy(verdict.accepted_nodes, nodes.mutable_data() + row * longest);
    counts.mutable_at(row) = static_cast<std::int32_t>(verdict.tokens.size());
    if (!outcomes[i].error.empty()) errors[static_cast<int>(i)] = outcomes[i].error;
  }
  return {tokens, nodes, counts, errors};
}

std::vector<Outcome> VerifyOnHost(const BorrowedTensor& logits,
                                  const std::vector<SampleRequest>& requests) {
  const HostMatrix matrix(logits);
  const FloatRows rows(matrix);
  HostVerifier verifier({.vocab_size = matrix.cols(),
                         .max_requests = static_cast<int>(requests.size()),
                         .max_rows = matrix.rows()});
  verifier.Begin(rows.rows(), requests);
  const std::span<const Outcome> outcomes = verifier.Finish();
  return {outcomes.begin(), outcomes.end()};
}

std::vector<Outcome> VerifyOnGpu(const BorrowedTensor& logits,
                                 const std::vector<SampleRequest>& requests) {
  return Gpu::Get().Run([&](TensorVerifier& gpu) {
    const std::span<const Outcome> outcomes = gpu.Verify(ViewOf(logits), requests);
    return std::vector<Outcome>(outcomes.begin(), outcomes.end());
  });
}

VerifiedRows VerifyRows(const BorrowedTensor& logits, const std::vector<const DraftTree*>& drafts,
                        const std::vector<const SamplingRule*>& rules,
                        const std::vector<int>& output_indices) {
  const Requests requests(drafts, rules, output_indices);
  std::vector<Outcome> outcomes;
  {
    const ReleaseGil release;
    outcomes = logits.is_on_cuda() ? VerifyOnGpu(logits, requests.list)
                                   : VerifyOnHost(logits, requests.list);
  }
  return ToArrays(outcomes, requests.longest_path);
}

// Tokens and probabilities, both [rows, count].
std::pair<IntArray, py::array_t<float>> TopRows(const BorrowedTensor& logits, int count) {
  std::vector<TopToken> top(static_cast<std::size_t>(logits.extent(0)) * count);
  {
    const ReleaseGil release;
    if (logits.is_on_cuda()) {
      Gpu::Get().Run([&](TensorVerifier& gpu) { gpu.Top(ViewOf(logits), count, top); });
    } else {
      const HostMatrix matrix(logits);
      const FloatRows rows(matrix);
      HostVerifier({}).Top(rows.rows(), count, top);
    }
  }
  const std::vector<py::ssize_t> shape = {static_cast<py::ssize_t>(logits.extent(0)), count};
  IntArray tokens(shape);
  py::array_t<float> probs(shape);
  for (std::size_t i = 0; i < top.size(); ++i) {
    tokens.mutable_data()[i] = top[i].token;
    probs.mutable_data()[i] = top[i].probability;
  }
  return {tokens, probs};
}

// An array in the GPU's memory that other libraries can read, without one that has such arrays.
class DeviceArray {
 public:
  DeviceArray(const py::bytes& memory, const std::string& dtype, std::vector<std::int64_t> shape,
              std::vector<std::int64_t> strides, std::uint64_t byte_offset) {
    const std::string_view bytes = memory;
    void* const data = Gpu::Get().Run(
        [&](TensorVerifier& gpu) { return gpu.Upload(std::as_bytes(std::span(bytes))); });
    const bool is_bfloat = dtype.starts_with("bfloat");
    const bool is_integer = dtype.starts_with("int");
    tensor_ = {.data = data,
               .device_type = dlpack::kCuda,
               .type_code = is_bfloat    ? dlpack::kBFloat
                            : is_integer ? dlpack::kInt
                                         : dlpack::kFloat,
               .bits = static_cast<std::uint8_t>(
                   std::stoi(dtype.substr(dtype.find_first_of("0123456789")))),
               .shape = std::move(shape),
               .strides = std::move(strides),
               .byte_offset = byte_offset,
               .owner = std::shared_ptr<void>(data, [](void* uploaded) {
                 Gpu::Get().Run([&](TensorVerifier& gpu) { gpu.Free(uploaded); });
               })};
  }

  py::capsule Export() const { return ExportTensor(tensor_); }

 private:
  ExportedTensor tensor_;
};

void RegisterTensor(py::module_& module) {
  py::class_<BorrowedTensor>(module, "Tensor", "A tensor of another library.")
      .def(py::init<const py::capsule&, std::uintptr_t>(), py::arg("capsule"), py::arg("stream"),
           "Takes over what the tensor's `__dlpack__` returned; the stream is a handle of CUDA's.")
      .def_property_readonly(
          "shape",
          [](const BorrowedTensor& tensor) {
            std::vector<std::int64_t> shape;
            for (int i = 0; i < tensor.ndim(); ++i) shape.push_back(tensor.extent(i));
            return shape;
          },
          "Its extents.")
      .def_property_readonly("dtype", &BorrowedTensor::dtype_name, "Its type, such as 'float32'.")
      .def_property_readonly("device", &BorrowedTensor::device_name,
                             "Where it is: 'cpu', 'cuda:0' or another device.")
      .def("integers", &ReadIntegers,
           "The elements of a vector, or of a matrix row by row. The dtype is int32 or int64.");
  py::class_<DeviceArray>(module, "DeviceArray",
                          "An array in the GPU's memory, for tests and benchmarks.")
      .def(py::init<const py::bytes&, const std::string&, std::vector<std::int64_t>,
                    std::vector<std::int64_t>, std::uint64_t>(),
           py::arg("memory"), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
           py::arg("byte_offset"), "A copy of the memory. Strides are in elements.")
      .def(
          "__dlpack__", [](const DeviceArray& array, const py::object&) { return array.Export(); },
          py::kw_only(), py::arg("stream") = py::none(), "Complete on every stream.")
      .def(
          "__dlpack_device__", [](const DeviceArray&) { return std::pair(int{dlpack::kCuda}, 0); },
          "The first GPU.");
}

}  // namespace

void RegisterKernels(py::module_& module) {
  RegisterTensor(module);
  py::class_<SamplingRule>(module, "SamplingRule", "The options that select a token.")
      .def(py::init(&MakeRule), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
           py::arg("min_p"), py::arg("seed"), py::arg("acceptance_method"),
           "Raises InvalidArgumentError that names the first option out of its range.");
  py::class_<DraftTree>(module, "Draft", "The draft tokens of one request.")
      .def(py::init(&MakeDraft), py::arg("tokens"), py::arg("parents"), py::arg("probs"),
           "Node i is tokens[i] after node parents[i], -1 for the root; probs [tokens, vocab] has "
           "the probabilities that each was drawn from, None where they are certain.")
      .def("__len__", &DraftTree::size, "The number of draft tokens.");
  module.def("verify_rows", &VerifyRows, py::arg("logits"), py::arg("drafts"), py::arg("rules"),
             py::arg("output_indices"),
             "Emitted tokens, accepted nodes (both padded with -1), numbers of tokens, and error "
             "texts by request.");
  module.def("top_rows", &TopRows, py::arg("logits"), py::arg("count"),
             "The most probable tokens and their probabilities, both [rows, count].");
}

}  // namespace forerun
