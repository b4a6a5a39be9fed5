#include "cpp/util/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace forerun {
namespace {

class ThreadTeamTest : public ::testing::TestWithParam<int> {
 protected:
  ThreadTeam team_{GetParam()};
};

TEST_P(ThreadTeamTest, CallsEveryTaskOnce) {
  EXPECT_EQ(team_.num_threads(), GetParam());
  for (int num_tasks : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> calls(num_tasks);
    team_.Run(num_tasks, [&](int task) { calls[task].fetch_add(1); });
    for (int task = 0; task < num_tasks; ++task) EXPECT_EQ(calls[task].load(), 1) << task;
  }
}

TEST_P(ThreadTeamTest, AMemberHasItsScratchToItself) {
  std::vector<int> busy(team_.num_threads(), 0);
  std::atomic<bool> shared = false;
  for (int run = 0; run < 50; ++run) {
    team_.Run(40, [&](int, int member) {
      ASSERT_GE(member, 0);
      ASSERT_LT(member, team_.num_threads());
      // Plain memory on purpose: a thread sanitizer would tell of two threads here.
      if (busy[member]++ != 0) shared = true;
      --busy[member];
    });
  }
  EXPECT_FALSE(shared);
}

TEST_P(ThreadTeamTest, WritesOfTheCallsAreSeenAfterRunAndByTheNext) {
  std::vector<int> values(97, 0);
  for (int run = 0; run < 2000; ++run) {
    // Neighbours' values of the run before, so that a lost write would spread.
    const std::vector<int> before = values;
    team_.Run(97, [&](int task) { values[task] = before[(task + 1) % 97] + 1; });
    for (int value : values) ASSERT_EQ(value, run + 1);
  }
}

TEST_P(ThreadTeamTest, ManyTinyRunsLoseNothing) {
  std::atomic<int> sum = 0;
  for (int run = 0; run < 20000; ++run) {
    team_.Run(2, [&](int) { sum.fetch_add(1, std::memory_order_relaxed); });
    ASSERT_EQ(sum.load(std::memory_order_relaxed), 2 * (run + 1));
  }
}

TEST_P(ThreadTeamTest, ThrowsTheFirstErrorAfterAllCallsEnded) {
  for (int num_tasks : {1, 2, 50}) {
    std::atomic<int> calls = 0;
    const auto fail = [&](int task) {
      calls.fetch_add(1);
      if (task % 3 == 0) throw std::runtime_error("task");
    };
    EXPECT_THROW(team_.Run(num_tasks, fail), std::runtime_error);
    EXPECT_EQ(calls.load(), num_tasks);
    // And the team lives on, with the error forgotten.
    team_.Run(num_tasks, [&](int) { calls.fetch_sub(1); });
    EXPECT_EQ(calls.load(), 0);
  }
}

TEST_P(ThreadTeamTest, WorkersThatFellAsleepWakeAgain) {
  for (int run = 0; run < 5; ++run) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> calls = 0;
    // Each waits for the others, so every thread of the team must come.
    const int num_tasks = team_.num_threads();
    team_.Run(num_tasks, [&](int) {
      calls.fetch_add(1);
      while (calls.load() < num_tasks) std::this_thread::yield();
    });
    EXPECT_EQ(calls.load(), num_tasks);
  }
}

TEST_P(ThreadTeamTest, TeamsThatNeverRanOrSleepAreDissolved) {
  {
    ThreadTeam never_ran(GetParam());
  }
  ThreadTeam asleep(GetParam());
  asleep.Run(10, [](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadTeamTest, ::testing::Values(1, 2, 3, 4),
                         [](const auto& param) { return std::to_string(param.param); });

TEST(ThreadTeamSizeTest, ZeroTakesOneThreadPerCore) {
  ThreadTeam team(0);
  EXPECT_GE(team.num_threads(), 1);
}

}  // namespace
}  // namespace forerun
