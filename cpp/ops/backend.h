// A device that models run on: what an engine, a scorer or a benchmark is assembled from.
#ifndef FORERUN_CPP_OPS_BACKEND_H_
#define FORERUN_CPP_OPS_BACKEND_H_

#include "cpp/ops/device.h"
#include "cpp/ops/ops.h"

namespace forerun {

class Backend : public Device {
 public:
  // Over memory().
  virtual Ops& ops() = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_BACKEND_H_
