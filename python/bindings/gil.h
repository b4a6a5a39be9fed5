// Leaving and taking the GIL, in threads that the interpreter may not survive.
//
// When the main thread has ended, CPython (before 3.14) ends every other thread that asks for the
// GIL by unwinding its stack, which C++ answers with std::terminate. Such a thread sleeps here
// instead until the process is gone, as CPython 3.14 does.
#ifndef FORERUN_PYTHON_BINDINGS_GIL_H_
#define FORERUN_PYTHON_BINDINGS_GIL_H_

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <optional>

namespace forerun {

[[noreturn]] inline void SleepForever() {
  while (true) pause();
}

// Makes a call that takes the GIL, at first or again while it runs Python code. REQUIRES: the call
// throws nothing.
template <typename Call>
void CallOrSleep(const Call& call) {
  try {
    call();
  } catch (...) {  // the forced unwinding
    SleepForever();
  }
}

class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;
  ~ReleaseGil() {
    CallOrSleep([this] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* const state_;
};

class AcquireGil {
 public:
  AcquireGil() {
    if (PyGILState_Check() == 0) ++num_acquisitions_;
    CallOrSleep([this] { gil_.emplace(); });
  }

  // How often a thread that did not hold the GIL has taken it by this class, in the whole process.
  static std::int64_t num_acquisitions() { return num_acquisitions_; }

 private:
  static inline std::atomic<std::int64_t> num_acquisitions_ = 0;

  std::optional<pybind11::gil_scoped_acquire> gil_;
};

}  // namespace forerun

#endif  // FORERUN_PYTHON_BINDINGS_GIL_H_
