#ifndef FORERUN_CPP_UTIL_REQUEST_ERROR_H_
#define FORERUN_CPP_UTIL_REQUEST_ERROR_H_

#include <stdexcept>

namespace forerun {

// Fails the request that it happens to, not the engine.
class RequestError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What a caller's hook threw, or got wrong.
class HookError : public RequestError {
 public:
  using RequestError::RequestError;
};

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_REQUEST_ERROR_H_
