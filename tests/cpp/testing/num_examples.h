// How many random examples a property test tries.
#ifndef FORERUN_TESTS_CPP_TESTING_NUM_EXAMPLES_H_
#define FORERUN_TESTS_CPP_TESTING_NUM_EXAMPLES_H_

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <system_error>

#include "cpp/util/check.h"
#include "cpp/util/simd/isa_macros.h"

namespace forerun::testing {

// FORERUN_TEST_VERIFIER=cuda in the environment asks for engines that verify on the GPU. Tests then
// try a part of their examples, since it may be an emulated one.
inline bool VerifiesOnGpu() {
  const char* name = std::getenv("FORERUN_TEST_VERIFIER");
  FORERUN_CHECK(name == nullptr || std::string_view(name) == "cuda");
  return name != nullptr;
}

// In the environment, FORERUN_LONG_TESTS=1 asks for the long run and FORERUN_TEST_EXAMPLES=n for n
// examples, as under a tool that slows the test down.
inline int NumExamples(int usual, int in_long_run) {
  if (const char* text = std::getenv("FORERUN_TEST_EXAMPLES")) {
    const char* const text_end = text + std::strlen(text);
    int number = 0;
    const auto [end, error] = std::from_chars(text, text_end, number);
    FORERUN_CHECK(error == std::errc() && end == text_end && number > 0,
                  "FORERUN_TEST_EXAMPLES is a positive number");
    return number;
  }
  const char* value = std::getenv("FORERUN_LONG_TESTS");
  const bool is_long = value != nullptr && std::string_view(value) == "1";
  // Under a sanitizer an example takes several times as long.
  const int number = is_long ? in_long_run : FORERUN_SANITIZED ? (usual + 1) / 2 : usual;
  return VerifiesOnGpu() ? std::max(1, number / 20) : number;
}

// Tests that try all numbers from 0 on try every so many of them.
inline int ExampleStride() { return VerifiesOnGpu() ? 7 : 1; }

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_NUM_EXAMPLES_H_
