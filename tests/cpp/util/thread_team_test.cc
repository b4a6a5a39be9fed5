#include "cpp/util/thread_team.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpp/util/machine.h"

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
  EXPECT_EQ(ThreadTeam(0).num_threads(), NumUsableCores());
}

// The exit status of a child that was forked here; -1 where it had to be killed.
template <typename Body>
int StatusOfChild(const Body& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = -1;
  for (int i = 0; i < 1000 && waitpid(child, &status, WNOHANG) == 0; ++i) {
    if (i == 999) kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// ThreadSanitizer allows no new threads in the child, and a fork may copy AddressSanitizer's locks
// while a starting thread holds them, which ends the child's first allocation there.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)

TEST(ThreadTeamForkTest, TheChildRunsWithNewThreadsAndEnds) {
  for (const int sleep_ms : {0, 20}) {  // workers spin, workers sleep
    auto team = std::make_unique<ThreadTeam>(3);
    team->Run(8, [](int) {});
    std::this_thread::sleep_for(std::chrono::milliseconds(sleep_ms));
    const auto run = [&] {
      std::atomic<int> sum = 0;
      for (int i = 0; i < 100; ++i) team->Run(8, [&](int task) { sum += task; });
      return sum == 2800 ? 0 : 1;
    };
    EXPECT_EQ(StatusOfChild([&] {
                team.reset();
                return 0;
              }),
              0);
    EXPECT_EQ(StatusOfChild([&] {
                const int failed = run();
                team.reset();
                return failed;
              }),
              0);
    EXPECT_EQ(run(), 0) << "the parent goes on";
  }
}

#endif

}  // namespace
}  // namespace forerun
