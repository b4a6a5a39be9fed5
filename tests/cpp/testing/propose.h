// Helpers of the tests of drafters whose draft tokens are certain.
#ifndef FORERUN_TESTS_CPP_TESTING_PROPOSE_H_
#define FORERUN_TESTS_CPP_TESTING_PROPOSE_H_

#include <random>

#include "cpp/draft/drafter.h"

namespace forerun::testing {

inline int Draw(std::mt19937& random, int below) { return static_cast<int>(random() % below); }

inline DraftTree Propose(Drafter& drafter, RequestId id, int max_tokens) {
  const SamplingRule rule;
  DraftTree draft;
  drafter.Propose({id, max_tokens, rule, /*first_output_index=*/0}, draft);
  return draft;
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_PROPOSE_H_
