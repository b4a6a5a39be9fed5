// FORERUN_CHECK: an invariant of ours, always on. REQUIRE for callers is `throw InvalidArgument`.
#ifndef FORERUN_CPP_UTIL_CHECK_H_
#define FORERUN_CPP_UTIL_CHECK_H_

#include <string>

#include "forerun/error.h"

namespace forerun {

[[noreturn]] inline void FailCheck(const char* condition, const char* file, int line,
                                   const std::string& message) {
  throw InternalError(std::string(file) + ":" + std::to_string(line) + ": " + condition +
                      (message.empty() ? "" : ": " + message));
}

}  // namespace forerun

// The message expression is evaluated only on failure.
#define FORERUN_CHECK(condition, ...)                                                 \
  do {                                                                                \
    if (!(condition)) [[unlikely]]                                                    \
      ::forerun::FailCheck(#condition, __FILE__, __LINE__, std::string(__VA_ARGS__)); \
  } while (false)

#endif  // FORERUN_CPP_UTIL_CHECK_H_
