#include "python/bindings/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

using TokenArray = py::array_t<TokenId, py::array::c_style>;

// An argument that is a TokenArray.
struct GivenArray {
  py::object array;
};

}  // namespace
}  // namespace forerun

// Where numpy was not imported, an argument is none of its arrays: pybind11's own caster imports it
// to find that out, which takes longer than a short request.
template <>
struct pybind11::detail::type_caster<forerun::GivenArray> {
  PYBIND11_TYPE_CASTER(forerun::GivenArray, make_caster<forerun::TokenArray>::name);

  bool load(handle given, bool /*convert*/) {
    if (!module_::import("sys").attr("modules").contains("numpy")) return false;
    if (!isinstance<forerun::TokenArray>(given)) return false;
    value.array = reinterpret_borrow<object>(given);
    return true;
  }
};

namespace forerun {
namespace {

// Numpy is imported when an array is wanted first. REQUIRES: the GIL is held.
void RegisterLogprobDtype() {
  static bool is_registered = false;
  py::module_::import("numpy");  // may let other threads run, which come here too
  if (is_registered) return;
  is_registered = true;
  PYBIND11_NUMPY_DTYPE(TokenLogprob, token, logprob, rank);
}

// A view, which keeps the update alive.
template <OwnedLogprobs OwnedUpdate::* member>
py::array ToArray(const py::object& update) {
  RegisterLogprobDtype();
  const OwnedLogprobs& logprobs = update.cast<const OwnedUpdate&>().*member;
  return py::array_t<TokenLogprob>(logprobs.shape, logprobs.entries.data(), update);
}

using SaltedBytes = std::pair<std::string, py::bytes>;

bool RestoreOutputs(PythonEngine& engine, const std::vector<SaltedBytes>& given, bool is_last) {
  std::vector<std::vector<TokenId>> tokens;
  std::vector<PastOutput> outputs;
  tokens.reserve(given.size());
  for (const auto& [salt, bytes] : given) {
    const std::string_view view = bytes;
    if (view.size() % sizeof(TokenId) != 0) {
      throw InvalidArgument("outputs", std::to_string(view.size()) + " bytes", "int32 numbers");
    }
    tokens.emplace_back(view.size() / sizeof(TokenId));
    std::memcpy(tokens.back().data(), view.data(), view.size());
    outputs.push_back({tokens.back(), salt});
  }
  const ReleaseGil release;
  return engine.native().RestoreOutputs(outputs, is_last);
}

RequestId SubmitArray(PythonEngine& engine, const GivenArray& given, const SamplingParams& params,
                      const py::object& constraint, const py::object& logits_hook,
                      const SubmitOptions& options) {
  engine.hooks().DropEnded();
  const auto prompt = py::reinterpret_borrow<TokenArray>(given.array);
  if (prompt.ndim() != 1) {
    throw InvalidArgument("prompt_token_ids", std::to_string(prompt.ndim()) + " dimensions",
                          "a one-dimensional int32 array");
  }
  const std::span<const TokenId> tokens(prompt.data(), static_cast<std::size_t>(prompt.size()));
  RequestHooks hooks = engine.hooks().Make(constraint, logits_hook);
  const ReleaseGil release;
  return engine.native().Submit(tokens, params, std::move(hooks), options);
}

RequestId SubmitList(PythonEngine& engine, const std::vector<TokenId>& prompt,
                     const SamplingParams& params, const py::object& constraint,
                     const py::object& logits_hook, const SubmitOptions& options) {
  engine.hooks().DropEnded();
  RequestHooks hooks = engine.hooks().Make(constraint, logits_hook);
  const ReleaseGil release;
  return engine.native().Submit(prompt, params, std::move(hooks), options);
}

void SetTokenBytes(PythonEngine& engine, const std::vector<py::bytes>& token_bytes,
                   const std::vector<TokenId>& special_token_ids) {
  std::vector<std::string> copies(token_bytes.begin(), token_bytes.end());
  const ReleaseGil release;
  engine.native().SetTokenBytes(std::move(copies), special_token_ids);
}

struct Deadline {
  double seconds = 0;  // from when it was made on
  std::chrono::steady_clock::time_point time;
};

Deadline DeadlineAfter(double seconds) {
  constexpr double kMostSeconds = 1e9;  // the clock's range is 292 years
  using Clock = std::chrono::steady_clock;
  const std::chrono::duration<double> from_now(std::min(seconds, kMostSeconds));
  return {seconds, Clock::now() + std::chrono::duration_cast<Clock::duration>(from_now)};
}

std::shared_ptr<Prediction> MakePrediction(std::vector<TokenId> token_ids) {
  const ReleaseGil release;
  return std::make_shared<Prediction>(std::move(token_ids));
}

SubmitOptions MakeSubmitOptions(int priority, std::string cache_salt,
                                std::optional<std::shared_ptr<Prediction>> prediction,
                                std::optional<Deadline> deadline) {
  SubmitOptions options{.priority = priority,
                        .cache_salt = std::move(cache_salt),
                        .prediction = std::move(prediction).value_or(nullptr)};
  if (deadline) options.deadline = deadline->time;
  return options;
}

void RegisterUpdate(py::module_& module) {
  py::enum_<FinishReason>(module, "FinishReason", "Why a request ended.")
      .value("NONE", FinishReason::kNone)
      .value("STOP", FinishReason::kStop)
      .value("LENGTH", FinishReason::kLength)
      .value("ABORT", FinishReason::kAbort)
      .value("ERROR", FinishReason::kError)
      .value("DEADLINE", FinishReason::kDeadline);

  py::class_<OwnedUpdate, std::shared_ptr<OwnedUpdate>>(module, "RequestUpdate",
                                                        "What one step did for one request.")
      .def_readonly("new_tokens", &OwnedUpdate::new_tokens)
      .def_property_readonly(
          "logprobs",
          [](const py::object& update) { return ToArray<&OwnedUpdate::logprobs>(update); },
          "A record array [new tokens, entries] of token, logprob and rank.")
      .def_property_readonly(
          "prompt_logprobs",
          [](const py::object& update) { return ToArray<&OwnedUpdate::prompt_logprobs>(update); },
          "The same of prompt tokens.")
      .def_readonly("metrics", &OwnedUpdate::metrics)
      .def_property_readonly("num_accepted",
                             [](const OwnedUpdate& u) { return u.view.num_accepted; })
      .def_property_readonly("num_earlier_tokens",
                             [](const OwnedUpdate& u) { return u.view.num_earlier_tokens; })
      .def_property_readonly(
          "num_earlier_prompt_logprobs",
          [](const OwnedUpdate& u) { return u.view.num_earlier_prompt_logprobs; })
      .def_property_readonly("id", [](const OwnedUpdate& u) { return u.view.id; })
      .def_property_readonly("finish_reason",
                             [](const OwnedUpdate& u) { return u.view.finish_reason; })
      .def_property_readonly("num_cached_tokens",
                             [](const OwnedUpdate& u) { return u.view.num_cached_tokens; })
      .def_property_readonly("stop_token", [](const OwnedUpdate& u) { return u.view.stop_token; })
      .def_property_readonly("stop_string_index",
                             [](const OwnedUpdate& u) { return u.view.stop_string_index; })
      .def_property_readonly("num_text_bytes",
                             [](const OwnedUpdate& u) { return u.view.num_text_bytes; })
      .def_property_readonly("error", [](const OwnedUpdate& u) { return u.view.error; });
}

void RegisterDraftRecord(py::module_& module) {
  py::class_<DraftRecord>(module, "DraftRecord",
                          "What a drafter that is a model computed for one draft token.")
      .def_readonly("request_id", &DraftRecord::request_id)
      .def_readonly("num_tokens", &DraftRecord::num_tokens)
      .def_readonly("path", &DraftRecord::path)
      .def_property_readonly(
          "logits",
          [](const DraftRecord& record) {
            return py::array_t<float>(static_cast<py::ssize_t>(record.logits.size()),
                                      record.logits.data());
          },
          "A copy [draft vocabulary], float32.");
}

void RegisterLimits(py::module_& module) {
  py::class_<ModelLimits>(module, "ModelLimits", "What a loaded model can serve.")
      .def_readonly("vocab_size", &ModelLimits::vocab_size)
      .def_readonly("max_model_len", &ModelLimits::max_model_len)
      .def_readonly("model_max_len", &ModelLimits::model_max_len)
      .def_readonly("num_kv_blocks", &ModelLimits::num_kv_blocks)
      .def_readonly("block_size", &ModelLimits::block_size)
      .def_readonly("num_weight_bytes", &ModelLimits::num_weight_bytes)
      .def_readonly("weight_bytes", &ModelLimits::weight_bytes)
      .def_readonly("num_unpacked_layers", &ModelLimits::num_unpacked_layers)
      .def_readonly("num_bytes_per_token", &ModelLimits::num_bytes_per_token)
      .def_readonly("weight_cache", &ModelLimits::weight_cache)
      .def_readonly("eos_token_ids", &ModelLimits::eos_token_ids)
      .def_readonly("dtype", &ModelLimits::dtype)
      .def_readonly("kv_cache_dtype", &ModelLimits::kv_cache_dtype)
      .def_readonly("isa", &ModelLimits::isa)
      .def_readonly("num_threads", &ModelLimits::num_threads);
}

}  // namespace

void RegisterEngine(py::module_& module) {
  RegisterUpdate(module);
  RegisterLimits(module);
  RegisterDraftRecord(module);
  module.def("num_gil_acquisitions", &AcquireGil::num_acquisitions,
             "How often the engines of this process have taken the GIL, for tests.");
  py::class_<Deadline>(module, "Deadline", "A point in time.")
      .def(py::init(&DeadlineAfter), py::arg("seconds"), "So many seconds from now on.")
      .def_readonly("seconds", &Deadline::seconds);
  py::class_<Prediction, std::shared_ptr<Prediction>>(
      module, "Prediction", "A text that outputs are likely to resemble, indexed for all of them.")
      .def(py::init(&MakePrediction), py::arg("token_ids"), "Sorts them, without the GIL.")
      .def(
          "__len__", [](const Prediction& prediction) { return prediction.tokens().size(); },
          "How many tokens it has.");
  py::class_<SubmitOptions>(module, "SubmitOptions", "Where a request comes in its engine.")
      .def(py::init(&MakeSubmitOptions), py::arg("priority") = 0, py::arg("cache_salt") = "",
           py::arg("prediction") = py::none(), py::arg("deadline") = py::none(),
           "priority: lower values run first; cache_salt: cached prefixes are shared among equal "
           "ones only; prediction: what the output is likely to resemble; deadline: when the "
           "request ends with what it has.")
      .def_readonly("priority", &SubmitOptions::priority)
      .def_readonly("cache_salt", &SubmitOptions::cache_salt);
  py::class_<PythonEngine>(module, "Engine", "Generates tokens for many requests at once.")
      .def(py::init<const EngineOptions&, bool>(), py::arg("options"), py::kw_only(),
           py::arg("record_draft_logits") = false,
           "Maps and packs the model. record_draft_logits: keep what a drafter that is a model "
           "computes, for take_draft_records; for tests.")
      .def("set_token_bytes", &SetTokenBytes, py::arg("token_bytes"),
           py::arg("special_token_ids") = std::vector<TokenId>(),
           "Sets the bytes of each token, indexed by id; needed by requests with stop strings.")
      .def(
          "add_eos_tokens",
          [](PythonEngine& engine, const std::vector<TokenId>& tokens) {
            engine.native().AddEosTokens(tokens);
          },
          py::arg("token_ids"), "Tokens that end a text besides those of the model's configs.")
      // An array is taken only as it is: numpy would make integers of floats.
      .def("submit", &SubmitArray, py::arg("prompt_token_ids").noconvert(), py::arg("params"),
           py::arg("constraint") = py::none(), py::arg("logits_hook") = py::none(),
           py::arg_v("options", SubmitOptions(), "SubmitOptions()"),
           "Queues a request and returns its id.")
      .def("submit", &SubmitList, py::arg("prompt_token_ids"), py::arg("params"),
           py::arg("constraint") = py::none(), py::arg("logits_hook") = py::none(),
           py::arg_v("options", SubmitOptions(), "SubmitOptions()"),
           "Queues a request and returns its id.")
      .def(
          "check_room",
          [](const PythonEngine& engine, int num_requests) {
            engine.native().CheckRoom(num_requests);
          },
          py::arg("num_requests"),
          "Raises QueueFullError unless so many more requests may be submitted now, and "
          "InvalidArgumentError when they never could be.")
      .def(
          "cancel",
          [](PythonEngine& engine, RequestId id) {
            const ReleaseGil release;
            return engine.native().Cancel(id);
          },
          py::arg("request_id"), "Ends a request; false when no such request is unfinished.")
      .def(
          "has_unfinished",
          [](const PythonEngine& engine) { return engine.native().HasUnfinished(); },
          "Whether a step has work to do.")
      .def("step", &PythonEngine::Step,
           "Runs one draft/verify step without holding the GIL; returns its updates.")
      .def("updates", &PythonEngine::LatestUpdates, "The updates of the last step, once more.")
      .def(
          "reset_caches",
          [](PythonEngine& engine) {
            const ReleaseGil release;
            engine.native().ResetCaches();
          },
          "Drops every cached prefix and every past output that drafters remember.")
      .def(
          "reset_prefix_cache",
          [](PythonEngine& engine) {
            const ReleaseGil release;
            return engine.native().ResetPrefixCache();
          },
          "Drops every cached prefix; false while a request is unfinished.")
      .def(
          "restore_outputs", &RestoreOutputs, py::arg("outputs"), py::arg("is_last"),
          "Lets drafters learn from outputs of earlier engines, the newest first: pairs of a cache "
          "salt and token ids as the bytes of int32 numbers. They are indexed here, without the "
          "GIL, while another thread steps. False: no more are wanted.")
      .def("take_draft_records", &PythonEngine::TakeDraftRecords,
           "What a drafter that is a model computed since the last call, where "
           "record_draft_logits is set.")
      .def(
          "start_trace",
          [](PythonEngine& engine, const std::string& path) {
            const ReleaseGil release;
            return engine.native().StartTrace(path);
          },
          py::arg("path"),
          "Writes a trace of the steps to come; false while another trace is written.")
      .def(
          "stop_trace",
          [](PythonEngine& engine) {
            const ReleaseGil release;
            engine.native().StopTrace();
          },
          "Ends the trace that is being written, if there is one.")
      .def(
          "metrics",
          [](const PythonEngine& engine) {
            const ReleaseGil release;
            return engine.native().metrics();
          },
          "A copy of the counters.")
      .def_property_readonly(
          "limits", [](const PythonEngine& engine) { return engine.native().limits(); },
          "What the loaded model can serve.");
}

}  // namespace forerun
