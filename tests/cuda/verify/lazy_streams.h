// Streams of the emulated GPU that show missing waits.
#ifndef FORERUN_TESTS_CUDA_VERIFY_LAZY_STREAMS_H_
#define FORERUN_TESTS_CUDA_VERIFY_LAZY_STREAMS_H_

#ifdef FORERUN_EMULATED_GPU
#include "cuda/emulation/emulation.h"
#endif

namespace forerun::testing {

// While it lives, work in streams runs only when the host waits for it. On a GPU nothing changes.
class LazyStreams {
 public:
#ifdef FORERUN_EMULATED_GPU
  explicit LazyStreams(bool are_lazy = true) { emulation::options().lazy_streams = are_lazy; }
  ~LazyStreams() { emulation::options().lazy_streams = false; }
#else
  explicit LazyStreams(bool = true) {}
  ~LazyStreams() {}
#endif
  LazyStreams(const LazyStreams&) = delete;
  LazyStreams& operator=(const LazyStreams&) = delete;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CUDA_VERIFY_LAZY_STREAMS_H_
