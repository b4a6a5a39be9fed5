// How many random examples a property test tries.
#ifndef FORERUN_TESTS_CPP_TESTING_NUM_EXAMPLES_H_
#define FORERUN_TESTS_CPP_TESTING_NUM_EXAMPLES_H_

#include <cstdlib>
#include <string_view>

namespace forerun::testing {

// FORERUN_LONG_TESTS=1 in the environment asks for the long run.
inline int NumExamples(int usual, int in_long_run) {
  const char* value = std::getenv("FORERUN_LONG_TESTS");
  return value != nullptr && std::string_view(value) == "1" ? in_long_run : usual;
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_NUM_EXAMPLES_H_
