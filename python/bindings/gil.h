// Releasing and acquiring the GIL, in threads that may outlive the interpreter.
//
// After the main thread has ended, CPython (before 3.14) ends every other thread that acquires the
// GIL by unwinding its stack, on which C++ calls std::terminate. Such a thread sleeps here instead
// until the process exits, as in CPython 3.14.
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

// Makes a call that acquires the GIL, at its start or while it runs Python code. REQUIRES: the call
// does not throw.
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

  // How often this class has acquired the GIL in a thread that did not hold it, in the process.
  static std::int64_t num_acquisitions() { return num_acquisitions_; }

 private:
  static inline std::atomic<std::int64_t> num_acquisitions_ = 0;

  std::optional<pybind11::gil_scoped_acquire> gil_;
};

}  // namespace forerun

#endif  // FORERUN_PYTHON_BINDINGS_GIL_H_
