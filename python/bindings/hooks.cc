#include "python/bindings/hooks.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "python/bindings/gil.h"

namespace forerun {
namespace {

namespace py = pybind11;

// "ValueError: the message", as UTF-8: the message is the caller's, may hold lone surrogates, and
// its __str__ may raise.
std::string Describe(const py::error_already_set& error) {
  const std::string name = Py_TYPE(error.value().ptr())->tp_name;
  const auto text = py::reinterpret_steal<py::object>(PyObject_Str(error.value().ptr()));
  if (!text) {
    PyErr_Clear();
    return name + " (its __str__ raises)";
  }
  const auto bytes = py::reinterpret_steal<py::bytes>(
      PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace"));
  if (!bytes) {
    PyErr_Clear();
    return name;
  }
  return name + ": " + std::string(bytes);
}

// Whether the exception is meant for the caller of the engine and is not a failure of the hook.
bool IsInterrupt(const py::error_already_set& error) {
  if (error.matches(PyExc_KeyboardInterrupt) || error.matches(PyExc_SystemExit)) return true;
  const auto interrupts = py::module_::import("forerun.util.interrupts");
  return interrupts.attr("raised_by_signal_handler")(error.value(), error.trace()).cast<bool>();
}

template <typename Call>
void CallPython(const Call& call) {
  const AcquireGil gil;
  try {
    call();
  } catch (py::error_already_set& error) {
    std::string failure;
    try {
      if (IsInterrupt(error)) throw HookInterrupt{error};
      failure = Describe(error);
    } catch (py::error_already_set& interrupt) {
      throw HookInterrupt{interrupt};
    }
    throw std::runtime_error(failure);
  } catch (const std::exception&) {
    throw;
  } catch (...) {  // the interpreter is gone
    SleepForever();
  }
}

// A Python object that may be dropped without the GIL.
class Holder {
 public:
  Holder(py::object object, DroppedObjects& dropped)
      : object_(std::move(object)), dropped_(dropped) {}
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  ~Holder() { dropped_.Add(std::move(object_)); }
  const py::object& get() const { return object_; }

 private:
  py::object object_;
  DroppedObjects& dropped_;
};

py::list ToList(std::span<const TokenId> tokens, std::span<const TokenId> more = {}) {
  py::list list(tokens.size() + more.size());
  std::size_t i = 0;
  for (TokenId token : tokens) list[i++] = token;
  for (TokenId token : more) list[i++] = token;
  return list;
}

class PythonConstraint : public TokenConstraint {
 public:
  PythonConstraint(py::object constraint, PythonConstraintBatch& batch, DroppedObjects& dropped)
      : constraint_(std::move(constraint), dropped), batch_(batch) {}

  void Restart() override {
    CallPython([&] { Call("restart"); });
  }

  int Advance(std::span<const TokenId> tokens) override {
    int num_taken = 0;
    CallPython([&] { num_taken = Call("advance", ToList(tokens)).cast<int>(); });
    return num_taken;
  }
  void Rollback(int num_tokens) override {
    CallPython([&] { Call("rollback", num_tokens); });
  }
  void AppendForced(std::vector<TokenId>& tokens) override {
    CallPython([&] {
      for (py::handle token : Call("forced")) tokens.push_back(token.cast<TokenId>());
    });
  }
  ConstraintBatch& batch() override { return batch_; }

  template <typename... Args>
  py::object Call(const char* method, Args&&... args) {
    return constraint_.get().attr(method)(std::forward<Args>(args)...);
  }

 private:
  const Holder constraint_;
  PythonConstraintBatch& batch_;
};

class PythonLogitsHook : public LogitsHook {
 public:
  PythonLogitsHook(py::object function, DroppedObjects& dropped)
      : function_(std::move(function), dropped) {}

  void Process(std::span<const TokenId> output, std::span<const TokenId> path,
               std::span<float> logits) override {
    CallPython([&] {
      // The array is a copy: the callable may keep it.
      py::array_t<float> row(static_cast<py::ssize_t>(logits.size()), logits.data());
      const auto changed =
          function_.get()(ToList(output, path), row).cast<py::array_t<float, py::array::c_style>>();
      if (changed.ndim() != 1 || changed.size() != static_cast<py::ssize_t>(logits.size())) {
        throw std::runtime_error("a row of another shape came back");
      }
      std::copy_n(changed.data(), logits.size(), logits.data());
    });
  }

 private:
  const Holder function_;
};

}  // namespace

void PythonConstraintBatch::FillMasks(const MaskBatch& masks) {
  py::list states(masks.failures.size());
  for (std::size_t row = 0; row < states.size(); ++row) states[row] = py::none();
  for (const MaskRequest& request : masks.requests) {
    const auto failures = masks.failures.subspan(request.first_row, request.tokens.size() + 1);
    try {
      CallPython([&] {
        const auto after = static_cast<PythonConstraint*>(request.constraint)
                               ->Call("after", ToList(request.tokens), ToList(request.parents))
                               .cast<py::list>();
        if (after.size() != failures.size()) throw std::runtime_error("states are missing");
        for (std::size_t i = 0; i < failures.size(); ++i) {
          if (after[i].is_none()) failures[i] = "it refuses a token that it allowed";
          states[request.first_row + i] = after[i];
        }
      });
    } catch (const std::runtime_error& error) {
      std::ranges::fill(failures, error.what());
    }
  }
  CallPython([&] {
    static_cast<PythonConstraint*>(masks.requests[0].constraint)
        ->Call("fill_masks", states, reinterpret_cast<std::uintptr_t>(masks.words.data()),
               masks.words_per_row * sizeof(std::uint32_t));
  });
  for (std::size_t row = 0; row < states.size(); ++row) {
    if (states[row].is_none()) continue;
    try {
      CallPython([&] { states[row].attr("check")(); });
    } catch (const std::runtime_error& error) {
      masks.failures[row] = error.what();
    }
  }
}

void DroppedObjects::Add(py::object object) {
  const py::handle handle = object.release();
  const std::lock_guard lock(mutex_);
  try {
    objects_.push_back(handle);
  } catch (const std::bad_alloc&) {  // leaks it: destructors call this
  }
}

void DroppedObjects::Clear() {
  std::vector<py::handle> objects;
  {
    const std::lock_guard lock(mutex_);
    objects.swap(objects_);
  }
  for (py::handle object : objects) object.dec_ref();
}

RequestHooks PythonHooks::Make(const py::object& constraint, const py::object& logits_hook) {
  RequestHooks hooks;
  if (!constraint.is_none()) {
    hooks.constraint = std::make_unique<PythonConstraint>(constraint, batch_, dropped_);
  }
  if (!logits_hook.is_none()) {
    hooks.logits_hook = std::make_unique<PythonLogitsHook>(logits_hook, dropped_);
  }
  return hooks;
}

}  // namespace forerun
