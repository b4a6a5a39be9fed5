// A machine that holds logits and verifies them: the CPU or a GPU.
#ifndef FORERUN_CPP_OPS_DEVICE_H_
#define FORERUN_CPP_OPS_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "cpp/ops/pass_timer.h"
#include "cpp/tensor/memory.h"
#include "cpp/verify/verifier.h"

namespace forerun {

// Bytes.
struct MemorySize {
  std::int64_t free = 0, total = 0;
};

// Must outlive all that it makes and all that is in its memory.
class Device {
 public:
  virtual ~Device() = default;

  virtual const std::string& name() const = 0;
  virtual Memory& memory() = 0;
  // Of memory(), now. Throws DeviceError.
  virtual MemorySize memory_size() const = 0;
  // Of logits in memory().
  virtual std::unique_ptr<Verifier> MakeVerifier(const VerifierLimits& limits) = 0;
  // Null where an operation is done when it returns, so that the host's clock tells.
  virtual std::unique_ptr<PassTimer> MakePassTimer() { return nullptr; }
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_DEVICE_H_
