// A model whose output counts upwards, an engine over it, and helpers of its tests.
#ifndef FORERUN_TESTS_CPP_TESTING_COUNTING_ENGINE_H_
#define FORERUN_TESTS_CPP_TESTING_COUNTING_ENGINE_H_

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "tests/cpp/testing/scripted_executor.h"
#include "tests/cpp/testing/test_engine.h"

namespace forerun::testing {

inline constexpr int kVocabSize = 16;

// The model counts without end: 1, 2, ... 15, 1, 2, ...
inline TokenId Successor(TokenId token) { return token % (kVocabSize - 1) + 1; }

inline std::vector<float> CountingLogits(std::span<const TokenId> prefix) {
  std::vector<float> logits(kVocabSize, 0.0f);
  logits[Successor(prefix.back())] = 9.0f;
  return logits;
}

inline TokenId RightToken(std::span<const TokenId> text) { return Successor(text.back()); }
inline TokenId WrongToken(std::span<const TokenId>) { return 0; }

inline EngineConfig SmallConfig() {
  EngineConfig config;
  config.max_model_len = 64;
  config.num_blocks = 32;
  config.block_size = 4;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 32;
  config.num_speculative_tokens = 4;
  config.adaptive = false;
  config.eos_token_ids = {0};
  config.check_invariants = true;
  return config;
}

inline SamplingParams Greedy(int max_tokens) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = max_tokens;
  return params;
}

struct Finished {
  std::vector<TokenId> tokens;
  RequestUpdate last;
  RequestMetrics metrics;
  std::string error;
};

inline std::map<RequestId, Finished> RunToEnd(EngineCore& engine) {
  std::map<RequestId, Finished> results;
  while (engine.HasUnfinished()) {
    for (const RequestUpdate& update : engine.Step()) {
      Finished& result = results[update.id];
      result.tokens.insert(result.tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
      result.last = update;
      if (update.metrics != nullptr) result.metrics = *update.metrics;
      result.error = update.error;
    }
  }
  return results;
}

class CountingEngineTest : public ::testing::Test {
 protected:
  TestEngine MakeEngine(Drafter* drafter = nullptr) {
    return TestEngine(config_, executor_, drafter);
  }

  EngineConfig config_ = SmallConfig();
  ScriptedExecutor executor_{kVocabSize, config_.num_blocks, config_.block_size, CountingLogits};
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_COUNTING_ENGINE_H_
