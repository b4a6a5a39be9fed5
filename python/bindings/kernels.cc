#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/sampling/draft_sampling.h"
#include "cpp/sampling/sampler.h"
#include "cpp/tensor/tensor.h"
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

// Elements of one dimension of a tensor.
template <typename Visit>
void VisitElements(const BorrowedTensor& tensor, const std::byte* first, int dimension,
                   const Visit& visit) {
  const auto step = tensor.stride(dimension) * static_cast<std::int64_t>(SizeOf(*tensor.dtype()));
  for (std::int64_t i = 0; i < tensor.extent(dimension); ++i) visit(first + i * step);
}

// Row `row` of a matrix of floats. REQUIRES: to has tensor.extent(1) elements.
void ReadRow(const BorrowedTensor& tensor, std::int64_t row, float* to) {
  const DType dtype = *tensor.dtype();
  const std::byte* const first =
      tensor.data() + row * tensor.stride(0) * static_cast<std::int64_t>(SizeOf(dtype));
  if (dtype == DType::kBFloat16) {
    VisitElements(tensor, first, 1, [&](const std::byte* from) {
      *to++ = BFloat16ToFloat(Load<std::uint16_t>(from));
    });
  } else if (dtype == DType::kFloat16) {
    VisitElements(tensor, first, 1, [&](const std::byte* from) {
      *to++ = Float16ToFloat(Load<std::uint16_t>(from));
    });
  } else {
    VisitElements(tensor, first, 1, [&](const std::byte* from) { *to++ = Load<float>(from); });
  }
}

// A matrix on the host as float rows: its own memory where that is possible, else a copy.
class FloatRows {
 public:
  explicit FloatRows(const BorrowedTensor& tensor) {
    const auto rows = static_cast<int>(tensor.extent(0));
    const auto cols = static_cast<int>(tensor.extent(1));
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(tensor.data()) % alignof(float) == 0;
    if (tensor.dtype() == DType::kFloat32 && is_aligned && (tensor.stride(1) == 1 || cols == 1)) {
      rows_ = {reinterpret_cast<const float*>(tensor.data()), rows, cols, tensor.stride(0)};
      return;
    }
    copy_.resize(static_cast<std::size_t>(rows) * cols);
    for (int row = 0; row < rows; ++row) {
      ReadRow(tensor, row, copy_.data() + static_cast<std::int64_t>(row) * cols);
    }
    rows_ = {copy_.data(), rows, cols};
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
  std::vector<std::int64_t> values;
  const auto append = [&](const std::byte* from) {
    values.push_back(tensor.dtype() == DType::kInt64 ? Load<std::int64_t>(from)
                                                     : Load<std::int32_t>(from));
  };
  if (tensor.ndim() == 1) {
    VisitElements(tensor, tensor.data(), 0, append);
  } else {
    VisitElements(tensor, tensor.data(), 0,
                  [&](const std::byte* row) { VisitElements(tensor, row, 1, append); });
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
  for (int i = 0; i < static_cast<int>(tokens.size()); ++i) {
    draft.Append(tokens[i], parents[i], 1.0f);
    if (!probs || !draft.RowAfter(parents[i]).empty()) continue;
    const std::span<float> row =
        draft.AddRowAfter(parents[i], static_cast<int>((*probs)->extent(1)));
    ReadRow(**probs, i, row.data());
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

  VerifierLimits Limits(const ConstRows& logits) const {
    return {.vocab_size = logits.cols,
            .max_requests = static_cast<int>(list.size()),
            .max_rows = logits.rows,
            .max_request_tokens = longest_path};
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

VerifiedRows VerifyRows(const BorrowedTensor& logits, const std::vector<const DraftTree*>& drafts,
                        const std::vector<const SamplingRule*>& rules,
                        const std::vector<int>& output_indices) {
  const Requests requests(drafts, rules, output_indices);
  std::optional<HostVerifier> verifier;
  std::span<const Outcome> outcomes;
  {
    const ReleaseGil release;
    const FloatRows rows(logits);
    verifier.emplace(requests.Limits(rows.rows()));
    verifier->Begin(rows.rows(), requests.list);
    outcomes = verifier->Finish();
  }
  return ToArrays(outcomes, requests.longest_path);
}

// Tokens and probabilities, both [rows, count].
std::pair<IntArray, py::array_t<float>> TopRows(const BorrowedTensor& logits, int count) {
  std::vector<TopToken> top(static_cast<std::size_t>(logits.extent(0)) * count);
  {
    const ReleaseGil release;
    const FloatRows rows(logits);
    HostVerifier verifier({.vocab_size = rows.rows().cols, .max_rows = rows.rows().rows});
    verifier.Top(rows.rows(), count, top);
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

void RegisterTensor(py::module_& module) {
  py::class_<BorrowedTensor>(module, "Tensor", "A tensor of another library.")
      .def(py::init<const py::capsule&>(), py::arg("capsule"),
           "Takes over what the tensor's `__dlpack__` returned.")
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
