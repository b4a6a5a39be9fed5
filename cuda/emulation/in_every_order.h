// Runs a test of kernels under many schedules of the emulated GPU; on a GPU, once.
#ifndef FORERUN_CUDA_EMULATION_IN_EVERY_ORDER_H_
#define FORERUN_CUDA_EMULATION_IN_EVERY_ORDER_H_

#ifdef FORERUN_EMULATED_GPU
#include "cuda/emulation/emulation.h"
#endif

namespace forerun::emulation {

// Calls body() with threads and blocks forward, depth-first, in reverse and in `num_random` random
// orders. The options are as before afterwards.
template <class Body>
void InEveryOrder(Body body, int num_random = 2) {
#ifdef FORERUN_EMULATED_GPU
  const Options before = options();
  const struct Restore {
    const Options& options_before;
    ~Restore() { options() = options_before; }
  } restore{before};
  for (int run = 0; run < 3 + num_random; ++run) {
    options().order = run < 3 ? static_cast<Order>(run) : Order::kRandom;
    options().seed = before.seed + static_cast<unsigned>(run);
    body();
  }
#else
  static_cast<void>(num_random);
  body();
#endif
}

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_IN_EVERY_ORDER_H_
