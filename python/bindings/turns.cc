// The lock of an engine that Python threads share.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "cpp/util/fork.h"
#include "forerun/error.h"
#include "python/bindings/gil.h"
#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

// Threads enter one at a time, in the order in which they came. Native, so that `with` is atomic
// for signal handlers, which run between bytecodes: an exception of theirs never leaves it locked.
class Turns {
 public:
  ~Turns() {
    if (NumForks() != state_->num_forks) static_cast<void>(state_.release());
  }

  // Raises EngineBusy in a thread that is inside already, and what a signal handler raises while
  // it waits.
  void Enter() {
    State& state = Current();
    const std::thread::id self = std::this_thread::get_id();
    {
      const std::lock_guard lock(state.mutex);
      if (state.owner == self || std::ranges::find(state.waiting, self) != state.waiting.end()) {
        throw EngineBusy(
            "this thread already runs the model, or waits for its turn: logits processors, "
            "grammars "
            "and signal handlers must not call the model that they interrupt");
      }
      if (state.owner && state.was_forked) {
        throw EngineBusy(
            "the process was forked while another thread ran a step of the model; load the model "
            "in the child");
      }
      if (!state.owner && state.waiting.empty()) {
        state.owner = self;
        return;
      }
      state.waiting.push_back(self);
    }
    while (!WaitForTurn(state, self)) {
      if (PyErr_CheckSignals() == 0) continue;
      Leave(state, self);
      throw py::error_already_set();
    }
  }

  void Exit() {
    State& state = Current();
    const std::lock_guard lock(state.mutex);
    state.owner.reset();
    state.turn_ended.notify_all();
  }

  std::size_t NumWaiting() {
    State& state = Current();
    const std::lock_guard lock(state.mutex);
    return state.waiting.size();
  }

 private:
  struct State {
    int num_forks = NumForks();
    bool was_forked = false;
    std::mutex mutex;
    std::condition_variable turn_ended;
    std::optional<std::thread::id> owner;
    std::deque<std::thread::id> waiting;
  };

  // In the child of a fork the old one is left as it is: others may have held its mutex.
  State& Current() {
    if (NumForks() != state_->num_forks) {
      auto state = std::make_unique<State>();
      state->was_forked = true;
      state->owner = state_->owner;
      static_cast<void>(state_.release());
      state_ = std::move(state);
    }
    return *state_;
  }

  // False after a while in which it was not this thread's turn.
  static bool WaitForTurn(State& state, std::thread::id self) {
    const ReleaseGil release;
    std::unique_lock lock(state.mutex);
    const auto is_next = [&] { return !state.owner && state.waiting.front() == self; };
    if (!state.turn_ended.wait_for(lock, std::chrono::milliseconds(20), is_next)) return false;
    state.waiting.pop_front();
    state.owner = self;
    return true;
  }

  static void Leave(State& state, std::thread::id self) {
    const std::lock_guard lock(state.mutex);
    std::erase(state.waiting, self);
    state.turn_ended.notify_all();
  }

  std::unique_ptr<State> state_ = std::make_unique<State>();
};

}  // namespace

void RegisterTurns(py::module_& module) {
  py::class_<Turns>(module, "Turns",
                    "A lock that threads get in the order in which they ask for it.")
      .def(py::init<>(), "Free.")
      .def("__enter__", &Turns::Enter,
           "Waits for its turn. Raises EngineBusyError in the thread that has it.")
      .def_property_readonly("num_waiting", &Turns::NumWaiting,
                             "How many threads wait for their turn, for tests.")
      .def(
          "__exit__",
          [](Turns& turns, const py::object&, const py::object&, const py::object&) {
            turns.Exit();
          },
          py::arg("type"), py::arg("value"), py::arg("traceback"), "Ends the turn.");
}

}  // namespace forerun
