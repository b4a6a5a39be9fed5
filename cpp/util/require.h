// Checks of what callers pass.
#ifndef FORERUN_CPP_UTIL_REQUIRE_H_
#define FORERUN_CPP_UTIL_REQUIRE_H_

#include <sstream>
#include <string>

#include "forerun/error.h"
#include "forerun/types.h"

namespace forerun {

// Throws InvalidArgument unless `holds`. Write comparisons so that NaN fails them.
template <typename T>
void Require(bool holds, const char* field, T value, const std::string& expected) {
  if (holds) return;
  std::ostringstream text;
  text << value;
  throw InvalidArgument(field, text.str(), expected);
}

inline void RequireTokenId(const char* field, TokenId token) {
  Require(token >= 0, field, token, "token ids, which are never negative");
}

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_REQUIRE_H_
