// The thread that runs an engine for an event loop of Python's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cpp/util/fork.h"
#include "forerun/engine_loop.h"
#include "python/bindings/engine.h"
#include "python/bindings/gil.h"
#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

// A step that threw. It cost the requests with ids below first_new_id.
struct LoopFailure {
  [[noreturn]] void Raise() const {
    try {
      std::rethrow_exception(error);
    } catch (HookInterrupt& interrupt) {
      throw interrupt.error;
    }
  }

  std::exception_ptr error;
  RequestId first_new_id = 0;
};

// Keeps updates until Python takes them, and writes a byte into a file descriptor when there are
// some: an event loop that reads it need not hold a thread, and this one needs no GIL.
class UpdateQueue : public EngineLoop::Listener {
 public:
  using Updates = std::vector<std::shared_ptr<OwnedUpdate>>;
  struct Taken {
    Updates updates;
    LoopFailure failure;  // without an error: none
  };

  UpdateQueue(Engine& engine, int file_descriptor)
      : engine_(engine), file_descriptor_(file_descriptor) {}

  void OnUpdates(std::span<const RequestUpdate> updates) override {
    Updates owned;
    for (const RequestUpdate& update : updates) {
      owned.push_back(std::make_shared<OwnedUpdate>(update));
    }
    {
      const std::lock_guard lock(mutex_);
      taken_.updates.insert(taken_.updates.end(), owned.begin(), owned.end());
      const bool is_awaited = std::ranges::any_of(updates, [&](const RequestUpdate& update) {
        return update.finish_reason != FinishReason::kNone || !patient_.contains(update.id);
      });
      if (!is_awaited && taken_.updates.size() < kMostPatient) return;
      if (std::exchange(is_signalled_, true)) return;
    }
    Signal();
  }

  // Updates of these requests may wait for their ends, or until there are several.
  void LetWait(std::span<const RequestId> ids) {
    const std::lock_guard lock(mutex_);
    patient_.insert(ids.begin(), ids.end());
  }

  // Requests of the step are not tried again; those that came meanwhile run. Of several failures
  // before a Take the first error is kept. None is dropped while the mutex is held: an exception of
  // Python's takes the GIL then, which the thread in Take has.
  void OnFailure(std::exception_ptr error) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      taken_.failure.first_new_id = engine_.CancelStarted();
      if (!taken_.failure.error) taken_.failure.error = std::move(error);
      if (std::exchange(is_signalled_, true)) return;
    }
    Signal();
  }

  Taken Take() {
    const std::lock_guard lock(mutex_);
    is_signalled_ = false;
    for (const auto& update : taken_.updates) {
      if (update->view.finish_reason != FinishReason::kNone) patient_.erase(update->view.id);
    }
    return std::exchange(taken_, {});
  }

 private:
  // An event loop that wakes for each token takes time from the engine on a machine of few cores:
  // a third of a millisecond, since forward passes leave nothing of it in the caches.
  static constexpr std::size_t kMostPatient = 32;

  // Not while the mutex is held: the thread that wakes takes it at once.
  void Signal() {
    const char byte = 0;
    // A few bytes lie in the pipe at most: this neither blocks nor fails.
    static_cast<void>(!write(file_descriptor_, &byte, 1));
  }

  Engine& engine_;
  const int file_descriptor_;

  std::mutex mutex_;
  Taken taken_;
  std::unordered_set<RequestId> patient_;  // until their ends are taken
  bool is_signalled_ = false;
};

// Keeps its engine.
class PythonLoop {
 public:
  PythonLoop(py::object engine, int file_descriptor)
      : parts_(std::make_unique<Parts>(std::move(engine), file_descriptor)) {}

  ~PythonLoop() {
    // In the child of a fork the engine may be in the middle of a step of a thread that is gone.
    if (NumForks() != parts_->num_forks) {
      static_cast<void>(parts_.release());
      return;
    }
    Stop();
  }

  void Wake() { parts_->loop.Wake(); }
  void Cancel(const std::vector<RequestId>& ids) { parts_->loop.Cancel(ids); }
  void LetWait(const std::vector<RequestId>& ids) { parts_->queue.LetWait(ids); }
  bool IsCurrentThread() const { return parts_->loop.IsCurrentThread(); }
  void Stop() {
    const ReleaseGil release;
    parts_->loop.Stop();
  }

  std::pair<UpdateQueue::Updates, std::unique_ptr<LoopFailure>> Take() {
    UpdateQueue::Taken taken = parts_->queue.Take();
    parts_->engine.hooks().DropEnded();
    std::unique_ptr<LoopFailure> failure;
    if (taken.failure.error) failure = std::make_unique<LoopFailure>(std::move(taken.failure));
    return {std::move(taken.updates), std::move(failure)};
  }

 private:
  struct Parts {
    Parts(py::object object, int file_descriptor)
        : kept(std::move(object)),
          engine(kept.cast<PythonEngine&>()),
          queue(engine.native(), file_descriptor),
          loop(engine.native(), queue) {}

    const int num_forks = NumForks();
    const py::object kept;
    PythonEngine& engine;
    UpdateQueue queue;
    EngineLoop loop;
  };

  std::unique_ptr<Parts> parts_;
};

}  // namespace

void RegisterLoop(py::module_& module) {
  py::class_<LoopFailure>(module, "LoopFailure", "An exception that a step threw.")
      .def("reraise", &LoopFailure::Raise, "Raises it.")
      .def_readonly("first_new_id", &LoopFailure::first_new_id,
                    "It cost the requests with lower ids, which were cancelled.");
  py::class_<PythonLoop>(module, "EngineLoop",
                         "A thread that steps an engine while there is work, without the GIL.")
      .def(py::init<py::object, int>(), py::arg("engine"), py::arg("file_descriptor"),
           "Starts the thread. A byte is written into file_descriptor when there is something to "
           "take.")
      .def("wake", &PythonLoop::Wake, "Makes the thread look for submitted requests.")
      .def("cancel", &PythonLoop::Cancel, py::arg("request_ids"),
           "Ends requests before the next step.")
      .def("let_wait", &PythonLoop::LetWait, py::arg("request_ids"),
           "Lets updates of unfinished requests wait until they end, or several wait.")
      .def("take", &PythonLoop::Take,
           "The updates since the last call, and what a step threw: its requests are cancelled.")
      .def("is_current_thread", &PythonLoop::IsCurrentThread,
           "Whether this is called by what the engine calls.")
      .def("stop", &PythonLoop::Stop, "Waits for the end of the current step, and runs no more.");
}

}  // namespace forerun
