// When a model is asked for drafts.
#include "cpp/engine/draft_planner/draft_price.h"

#include <gtest/gtest.h>

namespace forerun {
namespace {

constexpr DraftPrice::StepCost kStep = {.seconds_per_request = 0.010, .seconds_per_row = 0.001};
constexpr int kManyTokens = 1000;

// An engine's use of it: drafts of four tokens, by a drafter that keeps up with what it is asked
// for.
class Engine {
 public:
  explicit Engine(double seconds_per_draft) : seconds_per_draft_(seconds_per_draft) {}

  // Whether a step of the request was drafted for; `accepted` of the four tokens come true on
  // average.
  bool Step(double accepted, DraftPrice::Record& record, int num_rows_behind = 0,
            int num_tokens_left = kManyTokens) {
    if (!price.Pays(kStep, num_rows_behind, num_tokens_left, record)) return false;
    const bool is_behind = num_rows_behind > DraftPrice::kFewRows;
    price.ObserveDrafting(1, 4, is_behind ? num_rows_behind : 0,
                          seconds_per_draft_ + 1e-4 * num_rows_behind);
    owed_ += accepted;
    const int now = static_cast<int>(owed_);
    owed_ -= now;
    record.was_asked = true;
    price.ObserveVerdict(4, now, record);
    return true;
  }

  // How many of the steps of a request were drafted for. Behind its first draft the drafter keeps
  // up with it.
  int Request(double accepted, int num_steps, int num_rows_behind = 0) {
    DraftPrice::Record record;
    int num_drafts = 0;
    for (int i = 0; i < num_steps; ++i) {
      const int behind = num_drafts == 0 ? num_rows_behind : 0;
      num_drafts += Step(accepted, record, behind, num_steps - i) ? 1 : 0;
    }
    price.End(record);
    return num_drafts;
  }

  DraftPrice price;

 private:
  const double seconds_per_draft_;
  double owed_ = 0;
};

TEST(DraftPriceTest, DraftsThatPayAreAlwaysMade) {
  EXPECT_EQ(Engine(0.004).Request(1.5, 400), 400);
}

TEST(DraftPriceTest, DraftsThatDoNotPayAreTriedForASmallPartOfTheTime) {
  // 0.3 tokens of 10 ms for 4 ms of drafting and 4 ms of rows: one in 80.
  const int num_drafts = Engine(0.004).Request(0.3, 4000);
  EXPECT_GT(num_drafts, 40);
  EXPECT_LT(num_drafts, 75);
}

TEST(DraftPriceTest, ARequestThatBecomesPredictableIsNoticed) {
  Engine engine(0.004);
  DraftPrice::Record record;
  for (int i = 0; i < 500; ++i) engine.Step(0, record);
  int last_skipped = 0;
  for (int i = 0; i < 1500; ++i) {
    if (!engine.Step(4, record)) last_skipped = i;
  }
  EXPECT_GT(last_skipped, 0);
  EXPECT_LT(last_skipped, 400);
}

TEST(DraftPriceTest, ACostlyBeginningSaysNothingOfTheDraftsToCome) {
  // Behind each prompt of 1000 tokens the drafter takes 100 ms, and then 2 ms for a draft.
  Engine engine(0.002);
  EXPECT_EQ(engine.Request(1.5, 400, 1000), 400);
  EXPECT_NEAR(engine.price.LeastPathProbability(kStep), (0.001 + 0.0005) / 0.010, 1e-4);
  EXPECT_EQ(engine.Request(1.5, 400, 1000), 400);
}

TEST(DraftPriceTest, CatchingUpMustBeWorthItForTheTokensLeft) {
  Engine engine(0.002);
  engine.Request(1.0, 100, 1000);
  // Drafts bring 10 ms for 6 ms each: 50 of them pay for the 100 ms, 5 do not.
  EXPECT_EQ(engine.Request(1.0, 20, 1000), 0);
  EXPECT_EQ(engine.Request(1.0, 20, 50), 20);
  EXPECT_EQ(engine.Request(1.0, 200, 1000), 200);
}

TEST(DraftPriceTest, AQuickFirstTimeOfCatchingUpIsNotTheLastWord) {
  Engine engine(0.002);
  engine.price.ObserveDrafting(1, 4, 0, 0.1);
  engine.price.ObserveDrafting(1, 4, 30, 0.05);  // less than a draft seemed to take
  engine.price.ObserveDrafting(1, 4, 1000, 0.9);
  for (int i = 0; i < 100; ++i) engine.price.ObserveDrafting(1, 4, 0, 0.002);
  EXPECT_EQ(engine.Request(1.0, 20, 1000), 0);
}

TEST(DraftPriceTest, RequestsLearnFromEachOther) {
  Engine engine(0.004);
  engine.Request(0.1, 200);
  EXPECT_LE(engine.Request(0.1, 60), 3);
  // And yet decide for themselves: of two that are asked now and then, one is worth it.
  DraftPrice::Record good, bad;
  int num_good = 0, num_bad = 0;
  for (int i = 0; i < 1000; ++i) {
    num_good += engine.Step(3, good) ? 1 : 0;
    num_bad += engine.Step(0, bad) ? 1 : 0;
  }
  EXPECT_GT(num_good, 600);
  EXPECT_LT(num_bad, 300);
}

TEST(DraftPriceTest, ShortRequestsShareTheirTrials) {
  Engine engine(0.004);
  engine.Request(0.1, 200);
  int num_drafts = 0;
  for (int i = 0; i < 100; ++i) num_drafts += engine.Request(0.1, 20);
  // Two at first, and one for every fourth.
  EXPECT_GT(num_drafts, 200 + 10);
  EXPECT_LT(num_drafts, 200 + 40);
}

TEST(DraftPriceTest, ACostlierForwardAsksForMoreProbablePaths) {
  DraftPrice cheap, dear;
  cheap.ObserveDrafting(2, 4, 0, 0.001);
  dear.ObserveDrafting(2, 4, 0, 0.016);
  EXPECT_NEAR(cheap.LeastPathProbability(kStep), (0.001 + 0.001 / 8) / 0.010, 1e-9);
  EXPECT_GT(dear.LeastPathProbability(kStep), cheap.LeastPathProbability(kStep));
}

}  // namespace
}  // namespace forerun
