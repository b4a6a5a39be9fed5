#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cpp/model/profile.h"
#include "cpp/model/scorer.h"
#include "cpp/model/tensor_values.h"
#include "cpp/util/simd/isa.h"
#include "forerun/error.h"
#include "python/bindings/gil.h"
#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

using TokenArray = py::array_t<TokenId, py::array::c_style>;

// A Scorer that Python threads may share: their calls take turns, outside of the GIL.
class Model {
 public:
  explicit Model(const ScorerOptions& options) : scorer_(options) {}

  const Scorer& scorer() const { return scorer_; }

  py::array_t<float> Logits(const TokenArray& token_ids,
                            const std::optional<std::vector<int>>& chunks) {
    if (token_ids.ndim() != 1) {
      throw InvalidArgument("token_ids", std::to_string(token_ids.ndim()) + " dimensions",
                            "a one-dimensional int32 array");
    }
    const std::vector<TokenId> tokens(token_ids.data(), token_ids.data() + token_ids.size());
    const std::vector<int> sizes = chunks.value_or(std::vector<int>());
    scorer_.CheckTokens(tokens, sizes);
    const py::ssize_t num_rows = token_ids.size();
    py::array_t<float> logits({num_rows, static_cast<py::ssize_t>(scorer_.vocab_size())});
    const Rows out(logits.mutable_data(), static_cast<int>(num_rows), scorer_.vocab_size());
    {
      const ReleaseGil release;
      const std::lock_guard lock(mutex_);
      scorer_.ComputeLogits(tokens, sizes, out);
    }
    return logits;
  }

 private:
  Scorer scorer_;
  std::mutex mutex_;
};

py::array_t<float> ReadTensor(const std::string& directory, const std::string& name) {
  TensorValues tensor;
  {
    const ReleaseGil release;
    tensor = ReadTensorValues(directory, name);
  }
  py::array_t<float> array(tensor.shape);
  std::copy(tensor.values.begin(), tensor.values.end(), array.mutable_data());
  return array;
}

void Profile(const EngineOptions& options, const std::function<void(const PassProfile&)>& report,
             int rounds) {
  const ScorerOptions model = {.model = options.model,
                               .dtype = options.dtype,
                               .quantization = options.quantization,
                               .kv_cache_dtype = options.kv_cache_dtype,
                               .num_threads = options.num_threads,
                               .isa = "",
                               .max_model_len = options.max_model_len};
  const ReleaseGil release;
  ProfilePasses({.model = model, .num_rounds = rounds}, report);
}

void RegisterProfile(py::module_& module) {
  py::class_<OperationProfile>(module, "OperationProfile", "What one kind of operation takes.")
      .def_readonly("name", &OperationProfile::name)
      .def_readonly("seconds", &OperationProfile::seconds)
      .def_readonly("share", &OperationProfile::share, "Of the pass.")
      .def_readonly("share_of_read", &OperationProfile::share_of_read,
                    "The rate at which products read weights, by that of plain reading.")
      .def_readonly("share_of_arithmetic", &OperationProfile::share_of_arithmetic,
                    "The arithmetic rate of products, by that of many rows of a small matrix.");
  py::class_<PassProfile>(module, "PassProfile", "Where the time of a forward pass goes.")
      .def_readonly("num_rows", &PassProfile::num_rows)
      .def_readonly("num_context", &PassProfile::num_context, "Tokens before the rows.")
      .def_readonly("seconds", &PassProfile::seconds)
      .def_readonly("read_rate", &PassProfile::read_rate, "Bytes a second of plain reading.")
      .def_readonly("arithmetic_rate", &PassProfile::arithmetic_rate,
                    "Multiplications and additions a second.")
      .def_readonly("operations", &PassProfile::operations);
  module.def(
      "profile_passes", &Profile, py::arg("options"), py::arg("report"), py::arg("rounds"),
      "Runs passes of a few rows and of prompts at several contexts; calls report(PassProfile) "
      "after each.");
}

}  // namespace

void RegisterModel(py::module_& module) {
  RegisterProfile(module);
  module.def("read_tensor", &ReadTensor, py::arg("directory"), py::arg("name"),
             "A matrix or vector of a checkpoint in float32: the weights that a model computes "
             "with, unpacked.");
  module.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : AvailableIsas()) names.emplace_back(Name(isa));
        return names;
      },
      "Instruction sets that this machine has, best first.");
  py::class_<Model>(module, "Model",
                    "A model without an engine: the logits of tokens that are already known.")
      .def(py::init([](const std::string& directory, const std::string& dtype,
                       const std::optional<QuantizationOptions>& quantization,
                       const std::string& kv_cache_dtype, int num_threads, const std::string& isa,
                       std::optional<int> max_model_len) {
             return std::make_unique<Model>(
                 ScorerOptions{directory, dtype, quantization.value_or(QuantizationOptions()),
                               kv_cache_dtype, num_threads, isa, max_model_len});
           }),
           py::arg("directory"), py::kw_only(), py::arg("dtype") = "auto",
           py::arg("quantization") = py::none(), py::arg("kv_cache_dtype") = "auto",
           py::arg("num_threads") = 0, py::arg("isa") = "", py::arg("max_model_len") = py::none(),
           py::call_guard<py::gil_scoped_release>(),
           "Maps and packs a Hugging Face model directory.")
      .def("logits", &Model::Logits, py::arg("token_ids"), py::arg("chunks") = py::none(),
           "Logits [len(token_ids), vocab_size]; row i predicts the token after token_ids[i]. "
           "`chunks` are the sizes of the forward passes, which change no value.")
      .def_property_readonly(
          "vocab_size", [](const Model& model) { return model.scorer().vocab_size(); },
          "Number of token ids.")
      .def_property_readonly(
          "max_model_len", [](const Model& model) { return model.scorer().max_model_len(); },
          "The most tokens of one call.")
      .def_property_readonly(
          "dtype", [](const Model& model) { return model.scorer().dtype(); },
          "\"bfloat16\" or \"float32\": weights that are not integers, and the KV cache by "
          "default.")
      .def_property_readonly(
          "isa", [](const Model& model) { return model.scorer().isa(); },
          "The instruction set in use.");
}

}  // namespace forerun
