// When a model is asked for drafts.
#include "cpp/draft/draft_price.h"

#include <gtest/gtest.h>

namespace forerun {
namespace {

constexpr DraftPrice::StepCost kStep = {.seconds_per_request = 0.010, .seconds_per_row = 0.001};

// How many of `num_steps` steps draft, when this many of four tokens are accepted.
int NumDrafts(double accepted, int num_steps, double seconds_per_draft) {
  DraftPrice price;
  DraftPrice::Record record;
  int num_drafts = 0;
  double owed = 0;
  for (int i = 0; i < num_steps; ++i) {
    if (!price.Pays(kStep, record)) continue;
    ++num_drafts;
    price.ObserveDrafting(1, 4, seconds_per_draft);
    owed += accepted;
    const int now = static_cast<int>(owed);
    owed -= now;
    record.was_asked = true;
    DraftPrice::ObserveVerdict(4, now, record);
  }
  return num_drafts;
}

TEST(DraftPriceTest, DraftsThatPayAreAlwaysMade) { EXPECT_EQ(NumDrafts(1.5, 400, 0.004), 400); }

TEST(DraftPriceTest, DraftsThatDoNotPayAreTriedNowAndThen) {
  // 0.3 tokens of 10 ms for 4 ms of drafting and 4 ms of rows.
  const int num_drafts = NumDrafts(0.3, 4000, 0.004);
  EXPECT_GT(num_drafts, 20);
  EXPECT_LT(num_drafts, 60);
}

TEST(DraftPriceTest, ARequestThatBecomesPredictableIsNoticed) {
  DraftPrice price;
  DraftPrice::Record record;
  int last_skipped = 0;
  for (int i = 0; i < 2000; ++i) {
    if (!price.Pays(kStep, record)) {
      last_skipped = i;
      continue;
    }
    price.ObserveDrafting(1, 4, 0.004);
    record.was_asked = true;
    DraftPrice::ObserveVerdict(4, i < 500 ? 0 : 4, record);
  }
  EXPECT_GT(last_skipped, 400);
  EXPECT_LT(last_skipped, 1500);
}

TEST(DraftPriceTest, ACostlierForwardAsksForMoreProbablePaths) {
  DraftPrice cheap, dear;
  cheap.ObserveDrafting(2, 4, 0.001);
  dear.ObserveDrafting(2, 4, 0.016);
  EXPECT_NEAR(cheap.LeastPathProbability(kStep), (0.001 + 0.001 / 8) / 0.010, 1e-9);
  EXPECT_GT(dear.LeastPathProbability(kStep), cheap.LeastPathProbability(kStep));
}

}  // namespace
}  // namespace forerun
