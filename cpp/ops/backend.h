// A machine that models run on: its operations, its memory, and how much of it is free. What an
// engine, a scorer or a benchmark is assembled from.
#ifndef FORERUN_CPP_OPS_BACKEND_H_
#define FORERUN_CPP_OPS_BACKEND_H_

#include <cstdint>

#include "cpp/ops/ops.h"
#include "cpp/tensor/memory.h"

namespace forerun {

// Must outlive all that is made with its operations and in its memory.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual Ops& ops() = 0;
  virtual Memory& memory() = 0;
  // Memory that is free for a model, its keys and values and its buffers.
  virtual std::int64_t AvailableBytes() const = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_BACKEND_H_
