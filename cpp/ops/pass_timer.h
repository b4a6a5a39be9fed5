// How long a device took for a forward pass that it ran while the host went on.
#ifndef FORERUN_CPP_OPS_PASS_TIMER_H_
#define FORERUN_CPP_OPS_PASS_TIMER_H_

namespace forerun {

class PassTimer {
 public:
  virtual ~PassTimer() = default;

  // Around what is timed, in the order of the device's operations. They wait for nothing. Throw
  // DeviceError.
  virtual void Start() = 0;
  virtual void Stop() = 0;

  // From the last Start to the last Stop. REQUIRES: something that was started after the Stop was
  // waited for. Throws DeviceError.
  virtual double Seconds() = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_PASS_TIMER_H_
