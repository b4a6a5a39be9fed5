#ifndef FORERUN_CPP_UTIL_CLOCK_H_
#define FORERUN_CPP_UTIL_CLOCK_H_

#include <chrono>

namespace forerun {

// Seconds on a clock that never goes back.
inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_CLOCK_H_
