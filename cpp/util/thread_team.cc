#include "cpp/util/thread_team.h"

#include <sched.h>

#include <utility>

namespace forerun {
namespace {

// About 50 microseconds: longer than the serial work between two parallel operations of a step.
constexpr int kSpinsBeforeSleep = 20000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int NumAvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : static_cast<int>(count);
}

}  // namespace

ThreadTeam::ThreadTeam(int num_threads) {
  const int total = num_threads > 0 ? num_threads : NumAvailableCores();
  workers_.reserve(total - 1);
  for (int member = 1; member < total; ++member) {
    workers_.emplace_back([this, member] { WorkerLoop(member); });
  }
}

ThreadTeam::~ThreadTeam() {
  {
    std::lock_guard lock(sleep_mutex_);
    stopping_.store(true);
    epoch_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::TakeTasks(int member) {
  for (int task = next_task_.fetch_add(1); task < num_tasks_; task = next_task_.fetch_add(1)) {
    try {
      invoke_(fn_, task, member);
    } catch (...) {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

void ThreadTeam::RunErased(int num_tasks, const void* fn, Invoke invoke) {
  if (num_tasks <= 0) return;
  if (workers_.empty() || num_tasks == 1) {
    for (int task = 0; task < num_tasks; ++task) invoke(fn, task, 0);
    return;
  }
  fn_ = fn;
  invoke_ = invoke;
  num_tasks_ = num_tasks;
  next_task_.store(0, std::memory_order_relaxed);
  num_busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  // Sequentially consistent against num_sleeping_: either the worker sees the new epoch or we see
  // it asleep.
  epoch_.fetch_add(1);
  if (num_sleeping_.load() > 0) {
    {
      std::lock_guard lock(sleep_mutex_);
    }
    wake_.notify_all();
  }
  TakeTasks(0);
  for (int spins = 0; num_busy_.load(std::memory_order_acquire) > 0; ++spins) {
    if (spins < kSpinsBeforeSleep) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadTeam::WorkerLoop(int member) {
  std::uint32_t seen = 0;
  while (true) {
    for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen && spins < kSpinsBeforeSleep;
         ++spins) {
      Pause();
    }
    if (epoch_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(sleep_mutex_);
      num_sleeping_.fetch_add(1);
      wake_.wait(lock, [&] { return epoch_.load() != seen; });
      num_sleeping_.fetch_sub(1);
    }
    ++seen;
    if (stopping_.load()) return;
    TakeTasks(member);
    num_busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace forerun
