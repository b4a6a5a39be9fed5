#include "cpp/util/thread_team.h"

#include <sched.h>

#include <utility>

#include "cpp/util/clock.h"

namespace forerun {
namespace {

// Longer than the serial work between two parallel operations of a step.
constexpr int kPausesBeforeYield = 1000;
// Longer than the work between two steps.
constexpr double kSecondsBeforeSleep = 1e-3;

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

// Polls eagerly at first, then lets others have the core between two looks.
class Spin {
 public:
  explicit Spin(bool yield_at_once) : num_pauses_(yield_at_once ? kPausesBeforeYield : 0) {}

  void Once() {
    if (num_pauses_ < kPausesBeforeYield) {
      ++num_pauses_;
      Pause();
      return;
    }
    if (began_ == 0) began_ = Now();
    std::this_thread::yield();
  }

  bool is_long() const { return began_ != 0 && Now() - began_ > kSecondsBeforeSleep; }

 private:
  int num_pauses_;
  double began_ = 0;
};

bool HasTask(std::uint64_t tasks) {
  return static_cast<std::uint32_t>(tasks) < static_cast<std::uint32_t>(tasks >> 32);
}

}  // namespace

ThreadTeam::ThreadTeam(int num_threads) {
  const int num_cores = NumAvailableCores();
  const int total = num_threads > 0 ? num_threads : num_cores;
  oversubscribed_ = total > num_cores;
  workers_.reserve(total - 1);
  for (int member = 1; member < total; ++member) {
    workers_.emplace_back([this, member] { WorkerLoop(member); });
  }
}

ThreadTeam::~ThreadTeam() {
  {
    std::lock_guard lock(sleep_mutex_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::Call(const void* fn, Invoke invoke, int task, int member) {
  try {
    invoke(fn, task, member);
  } catch (...) {
    std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

int ThreadTeam::TakeTasks(int member) {
  int num_taken = 0;
  while (true) {
    // Acquires what Run wrote before it published the tasks.
    const std::uint64_t tasks = tasks_.fetch_add(1, std::memory_order_acq_rel);
    if (!HasTask(tasks)) return num_taken;
    Call(fn_, invoke_, static_cast<int>(static_cast<std::uint32_t>(tasks)), member);
    ++num_taken;
  }
}

void ThreadTeam::RunAlone(int num_tasks, const void* fn, Invoke invoke) {
  for (int task = 0; task < num_tasks; ++task) Call(fn, invoke, task, /*member=*/0);
}

void ThreadTeam::Publish(int num_tasks) {
  num_finished_.store(0, std::memory_order_relaxed);
  // Sequentially consistent against num_sleeping_: either a worker that is about to sleep sees the
  // tasks or we see it asleep.
  tasks_.store(static_cast<std::uint64_t>(num_tasks) << 32, std::memory_order_seq_cst);
  if (num_sleeping_.load(std::memory_order_seq_cst) > 0) {
    {
      std::lock_guard lock(sleep_mutex_);
    }
    wake_.notify_all();
  }
}

void ThreadTeam::RunErased(int num_tasks, const void* fn, Invoke invoke) {
  if (workers_.empty() || num_tasks <= 1) {
    RunAlone(num_tasks, fn, invoke);
  } else {
    fn_ = fn;
    invoke_ = invoke;
    Publish(num_tasks);
    const int num_left = num_tasks - TakeTasks(0);
    Spin spin(oversubscribed_);
    while (num_finished_.load(std::memory_order_acquire) < num_left) spin.Once();
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

bool ThreadTeam::WaitForWork() {
  Spin spin(oversubscribed_);
  while (!HasTask(tasks_.load(std::memory_order_relaxed))) {
    if (stopping_.load(std::memory_order_relaxed)) return false;
    if (spin.is_long()) {
      std::unique_lock lock(sleep_mutex_);
      num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] {
        return stopping_.load(std::memory_order_seq_cst) ||
               HasTask(tasks_.load(std::memory_order_seq_cst));
      });
      num_sleeping_.fetch_sub(1, std::memory_order_relaxed);
    }
    spin.Once();
  }
  return true;
}

void ThreadTeam::WorkerLoop(int member) {
  while (WaitForWork()) {
    const int num_taken = TakeTasks(member);
    // Published once per run: the run cannot end before.
    if (num_taken > 0) num_finished_.fetch_add(num_taken, std::memory_order_release);
  }
}

}  // namespace forerun
