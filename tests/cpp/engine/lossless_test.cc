// Contract 1 without a model: whatever drafter, draft length, pool, budget, batch, cache and
// parameters, every request's output is that of plain decoding, and every block is accounted for
// after every step.
#include <gtest/gtest.h>

#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_engine.h"

namespace forerun {
namespace {

using testing::DraftKind;
using testing::RandomEngine;

TEST(LosslessTest, EveryOutputEqualsPlainDecoding) {
  const int num_examples = testing::NumExamples(500, 20000);
  RandomEngine::Totals totals;
  for (int i = 0; i < num_examples; ++i) {
    SCOPED_TRACE("example " + std::to_string(i));
    const auto kind = static_cast<DraftKind>(i % testing::kNumDraftKinds);
    RandomEngine engine(static_cast<unsigned>(i), kind, RandomEngine::SetRandomParams);
    engine.Run();
    if (::testing::Test::HasFailure()) return;
    totals += engine.totals();
  }
  // The runs had all of these.
  EXPECT_GT(totals.num_accepted, num_examples);
  EXPECT_GT(totals.num_preemptions, num_examples / 10);
  EXPECT_GT(totals.num_trees, num_examples / 2);
  EXPECT_GT(totals.num_moved, num_examples / 10);
}

}  // namespace
}  // namespace forerun
