// An engine of which tests give the executor and the drafter. Its verifier is TestedVerifier: the
// CPU's, or with FORERUN_TEST_VERIFIER=cuda in the environment that of the GPU, real or emulated,
// of which FORERUN_CUDA_LIBRARY names the library. The engine's tests run over both as they are.
#ifndef FORERUN_TESTS_CPP_TESTING_TEST_ENGINE_H_
#define FORERUN_TESTS_CPP_TESTING_TEST_ENGINE_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>

#include "cpp/engine/engine_core.h"
#include "cpp/ops/cuda_library.h"
#include "cpp/ops/device.h"
#include "cpp/verify/uploading_verifier.h"
#include "tests/cpp/testing/num_examples.h"

namespace forerun::testing {

struct VerifierUnderTest {
  // Makes verifiers of logits in host memory.
  std::function<std::unique_ptr<Verifier>(const VerifierLimits& limits)> make =
      [](const VerifierLimits& limits) { return std::make_unique<HostVerifier>(limits); };
  // How many floats a log-probability may be away from its definition.
  int max_logprob_distance = 0;
  // Memory that is not the engine's own: no test makes these allocations fail.
  bool allocates_in_steps = false;
};

inline VerifierUnderTest MakeVerifierUnderTest() {
  if (!VerifiesOnGpu()) return {};
  static const std::unique_ptr<Device> gpu = OpenCudaLibrary().open_gpu();
  return {[](const VerifierLimits& limits) {
            return std::make_unique<UploadingVerifier>(gpu->MakeVerifier(limits), gpu->memory(),
                                                       limits);
          },
          /*max_logprob_distance=*/1, /*allocates_in_steps=*/true};
}

inline const VerifierUnderTest& TestedVerifier() {
  static const VerifierUnderTest tested = MakeVerifierUnderTest();
  return tested;
}

// The order of floats as integers: neighbours differ by 1.
inline std::int64_t OrderOf(float value) {
  const auto bits = std::bit_cast<std::int32_t>(value);
  return bits >= 0 ? bits : std::int64_t{std::numeric_limits<std::int32_t>::min()} - bits;
}

inline bool IsLogprob(const TokenLogprob& got, const TokenLogprob& expected) {
  return got.token == expected.token && got.rank == expected.rank && !std::isnan(got.logprob) &&
         std::abs(OrderOf(got.logprob) - OrderOf(expected.logprob)) <=
             TestedVerifier().max_logprob_distance;
}

class TestEngine : public EngineCore {
 public:
  TestEngine(const EngineConfig& config, ModelExecutor& executor, Drafter* drafter)
      : EngineCore(config, executor,
                   TestedVerifier().make(config.verifier_limits(executor.vocab_size())), drafter) {}
};

// For an AutoregressiveDrafter.
inline std::unique_ptr<Verifier> MakeDrafterVerifier(int vocab_size, int max_rows) {
  return TestedVerifier().make({.vocab_size = vocab_size, .max_rows = max_rows});
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_TEST_ENGINE_H_
