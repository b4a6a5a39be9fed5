#include "cpp/engine/draft_planner/cost_model.h"

#include <gtest/gtest.h>

#include <random>

namespace forerun {
namespace {

TEST(CostModelTest, FindsTheLineThatNoisyStepsScatterAround) {
  CostModel cost;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> noise(0.97, 1.03);
  for (int i = 0; i < 500; ++i) {
    const int rows = 1 + i % 9;
    cost.ObserveStep(rows, (0.010 + 0.001 * rows) * noise(random));
  }
  EXPECT_NEAR(cost.StepSeconds(1), 0.011, 0.0005);
  EXPECT_NEAR(cost.StepSeconds(9), 0.019, 0.0005);
}

// Eight rows in one go of the kernel, nine in two.
double StepOfTwoGoes(int rows) { return rows <= 8 ? 0.010 : 0.018; }

TEST(CostModelTest, FindsAStepBetweenNeighbouringNumbersOfRows) {
  CostModel cost;
  std::mt19937 random(2);
  std::uniform_real_distribution<double> noise(0.97, 1.03);
  for (int i = 0; i < 400; ++i) {
    const int rows = 1 + i % 16;
    cost.ObserveStep(rows, StepOfTwoGoes(rows) * noise(random));
  }
  for (int rows : {1, 4, 8}) EXPECT_NEAR(cost.StepSeconds(rows), 0.010, 0.001) << rows;
  for (int rows : {9, 12, 16}) EXPECT_NEAR(cost.StepSeconds(rows), 0.018, 0.001) << rows;
  EXPECT_GT(cost.StepSeconds(9), 1.5 * cost.StepSeconds(8));
}

TEST(CostModelTest, TheStepMovesWithAMachineThatSlowsDown) {
  CostModel cost;
  for (int i = 0; i < 400; ++i) cost.ObserveStep(1 + i % 16, StepOfTwoGoes(1 + i % 16));
  for (int i = 0; i < 200; ++i) cost.ObserveStep(4 + i % 2, 1.5 * StepOfTwoGoes(4));
  EXPECT_NEAR(cost.StepSeconds(4), 0.015, 0.0005);
  EXPECT_GT(cost.StepSeconds(9), cost.StepSeconds(8));
}

TEST(CostModelTest, ANumberOfRowsThatWasSlowOnceIsNotSlowForEver) {
  CostModel cost;
  for (int i = 0; i < 100; ++i) cost.ObserveStep(1 + i % 4, 0.010);
  for (int i = 0; i < 10; ++i) cost.ObserveStep(5, 0.016);
  const double at_first = cost.StepSeconds(5);
  EXPECT_GT(at_first, 0.012);
  for (int i = 0; i < 2000; ++i) cost.ObserveStep(1 + i % 4, 0.010);
  EXPECT_NEAR(cost.StepSeconds(5), 0.010, 0.0005);
}

TEST(CostModelTest, ManyRowsShareABucket) {
  CostModel cost;
  for (int i = 0; i < 200; ++i) {
    for (int rows : {8, 40, 200, 1000}) cost.ObserveStep(rows, 0.01 + 0.001 * rows);
  }
  for (int rows : {8, 40, 200, 1000, 1'000'000}) {
    EXPECT_NEAR(cost.StepSeconds(rows) / (0.01 + 0.001 * rows), 1.0, 0.02) << rows;
  }
}

TEST(CostModelTest, OneStalledStepMovesLittle) {
  CostModel cost;
  for (int i = 0; i < 200; ++i) cost.ObserveStep(1 + i % 5, 0.010 + 0.001 * (1 + i % 5));
  const double before = cost.StepSeconds(5);
  cost.ObserveStep(5, 10.0);
  EXPECT_LT(cost.StepSeconds(5), 1.15 * before);
}

TEST(CostModelTest, LongPlainDecodingKeepsTheSlope) {
  CostModel cost;
  for (int i = 0; i < 200; ++i) cost.ObserveStep(1 + i % 5, 0.010 + 0.002 * (1 + i % 5));
  for (int i = 0; i < 2000; ++i) cost.ObserveStep(1, 0.012);
  EXPECT_GT(cost.StepSeconds(9), 0.02);
}

TEST(CostModelTest, RowsThatFillAPassUpCostNothing) {
  CostModel cost([](int num_rows) { return (num_rows + 7) / 8 * 8; });
  for (int i = 0; i < 50; ++i) {
    cost.ObserveStep(1 + i % 8, 1.0);
    cost.ObserveStep(9 + i % 8, 1.5);
  }
  EXPECT_EQ(cost.StepSeconds(1), cost.StepSeconds(8));
  EXPECT_EQ(cost.RowSeconds(3, 5), 0.0);
  EXPECT_NEAR(cost.RowSeconds(3, 6), 0.5, 0.05);
}

TEST(CostModelTest, RowsNeverSaveTime) {
  CostModel cost;
  for (int i = 0; i < 100; ++i) cost.ObserveStep(4, 0.020);
  for (int i = 0; i < 100; ++i) cost.ObserveStep(8, 0.010);
  EXPECT_EQ(cost.RowSeconds(4, 4), 0.0);
  EXPECT_EQ(cost.RowSeconds(4, 0), 0.0);
}

TEST(CostModelTest, PartsOfRowsLieBetweenRows) {
  CostModel cost;
  for (int i = 0; i < 400; ++i) cost.ObserveStep(1 + i % 16, 0.010 + 0.001 * (1 + i % 16));
  EXPECT_NEAR(cost.RowSeconds(2, 3), 0.003, 1e-4);
  EXPECT_NEAR(cost.RowSeconds(2, 3.5), 0.0035, 1e-4);
}

TEST(CostModelTest, DraftsOfSeveralRequestsTakeWhatTheyTookTogether) {
  CostModel cost;
  EXPECT_FALSE(cost.knows_drafting());
  const auto seconds = [](int num_requests) { return 0.004 + 0.0002 * num_requests; };
  for (int i = 0; i < 400; ++i) cost.ObserveDrafting(1 + i % 8, 4, 0, seconds(1 + i % 8));
  for (int num_requests : {1, 4, 8}) {
    EXPECT_NEAR(cost.DraftSeconds(num_requests), seconds(num_requests), 1e-4);
    EXPECT_NEAR(cost.DraftPassSeconds(num_requests), seconds(num_requests) / 4, 1e-4);
  }
}

TEST(CostModelTest, ASlowFirstTimeOfCatchingUpIsForgotten) {
  CostModel cost;
  cost.ObserveDrafting(1, 4, 0, 0.1);
  cost.ObserveDrafting(1, 4, 30, 0.05);  // less than a draft seemed to take: says nothing
  EXPECT_EQ(cost.CatchUpSeconds(1000), 0.0);
  cost.ObserveDrafting(1, 4, 1000, 1.1);
  EXPECT_NEAR(cost.CatchUpSeconds(1000), 1.0, 1e-9);
  EXPECT_EQ(cost.CatchUpSeconds(CostModel::kFreeCatchUpTokens), 0.0);
  for (int i = 0; i < 400; ++i) cost.ObserveDrafting(1, 4, 0, 0.002);
  EXPECT_NEAR(cost.DraftSeconds(1), 0.002, 3e-4);
}

TEST(CostModelTest, AFirstDraftAfterAPromptIsNotTakenForTheUsual) {
  // Three passes of one token and one of 160, which takes as long as ten.
  CostModel cost;
  cost.ObserveDrafting(1, 4, 160, 0.013);
  EXPECT_NEAR(cost.DraftSeconds(1), 0.004, 1e-9);
  EXPECT_NEAR(cost.CatchUpSeconds(160), 0.009, 1e-9);
}

TEST(CostModelTest, OneStalledDraftMovesLittle) {
  CostModel cost;
  for (int i = 0; i < 100; ++i) cost.ObserveDrafting(2, 4, 0, 0.004);
  EXPECT_NEAR(cost.DraftSeconds(2), 0.004, 1e-4);
  cost.ObserveDrafting(2, 4, 0, 10.0);
  EXPECT_LT(cost.DraftSeconds(2), 1.06 * 0.004);
}

TEST(CostModelTest, StepsWithoutAForwardPassOfTheModelAreNotObserved) {
  CostModel cost;
  cost.ObserveDrafting(0, 0, 0, 1.0);
  cost.ObserveDrafting(2, 0, 0, 1.0);
  EXPECT_FALSE(cost.knows_drafting());
}

}  // namespace
}  // namespace forerun
