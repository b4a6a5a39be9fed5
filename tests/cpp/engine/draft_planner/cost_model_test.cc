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

TEST(CostModelTest, ASlowFirstTimeOfCatchingUpIsForgotten) {
  CostModel cost;
  cost.ObserveDrafting(1, 4, 0, 0.1);
  cost.ObserveDrafting(1, 4, 30, 0.05);  // less than a draft seemed to take: says nothing
  EXPECT_EQ(cost.CatchUpSeconds(1000), 0.0);
  cost.ObserveDrafting(1, 4, 1000, 1.1);
  EXPECT_NEAR(cost.CatchUpSeconds(1000), 1.0, 1e-9);
  EXPECT_EQ(cost.CatchUpSeconds(CostModel::kFreeCatchUpTokens), 0.0);
  for (int i = 0; i < 100; ++i) cost.ObserveDrafting(1, 4, 0, 0.002);
  EXPECT_NEAR(cost.draft_seconds(), 0.002, 1e-3);
}

TEST(CostModelTest, OneStalledDraftMovesLittle) {
  CostModel cost;
  for (int i = 0; i < 100; ++i) cost.ObserveDrafting(2, 4, 0, 0.004);
  EXPECT_NEAR(cost.draft_seconds(), 0.002, 1e-9);
  EXPECT_NEAR(cost.draft_forward_seconds(), 0.0005, 1e-9);
  cost.ObserveDrafting(2, 4, 0, 10.0);
  EXPECT_LT(cost.draft_seconds(), 1.06 * 0.002);
}

TEST(CostModelTest, StepsWithoutAForwardPassOfTheModelAreNotObserved) {
  CostModel cost;
  cost.ObserveDrafting(0, 0, 0, 1.0);
  cost.ObserveDrafting(2, 0, 0, 1.0);
  EXPECT_EQ(cost.draft_seconds(), 0.0);
}

}  // namespace
}  // namespace forerun
