#include "cpp/util/thread_team.h"

#include <algorithm>
#include <string>
#include <utility>

#include "cpp/util/clock.h"
#include "cpp/util/machine.h"
#include "forerun/error.h"

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
  const int num_cores = NumUsableCores();
  num_threads_ = std::min(num_threads > 0 ? num_threads : num_cores, kMaxThreads);
  oversubscribed_ = num_threads_ > num_cores;
  Start();
}

ThreadTeam::~ThreadTeam() {
  if (NumForks() == workers_->num_forks) {
    Stop();
  } else {
    static_cast<void>(workers_.release());
  }
}

void ThreadTeam::Start() {
  workers_ = std::make_unique<Workers>();
  tasks_.store(0);
  num_sleeping_.store(0);
  try {
    workers_->threads.reserve(num_threads_ - 1);
    for (int member = 1; member < num_threads_; ++member) {
      workers_->threads.emplace_back([this, member] { WorkerLoop(member); });
    }
  } catch (const std::exception& error) {
    const std::size_t num_started = workers_->threads.size() + 1;
    Stop();
    throw InvalidArgument(
        "num_threads", std::to_string(num_threads_),
        "as many threads as the system lets this process start: " + std::to_string(num_started) +
            " ran when one more failed (" + error.what() + ")");
  }
}

void ThreadTeam::Stop() {
  {
    std::lock_guard lock(workers_->sleep_mutex);
    stopping_.store(true);
  }
  workers_->wake.notify_all();
  for (std::thread& worker : workers_->threads) worker.join();
  workers_->threads.clear();
  stopping_.store(false);
}

void ThreadTeam::Call(const void* fn, Invoke invoke, int task, int member) {
  try {
    invoke(fn, task, member);
  } catch (...) {
    std::lock_guard lock(workers_->error_mutex);
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
      std::lock_guard lock(workers_->sleep_mutex);
    }
    workers_->wake.notify_all();
  }
}

void ThreadTeam::RunErased(int num_tasks, const void* fn, Invoke invoke) {
  if (num_threads_ == 1 || num_tasks <= 1) {
    RunAlone(num_tasks, fn, invoke);
  } else {
    if (NumForks() != workers_->num_forks) {
      static_cast<void>(workers_.release());
      Start();
    }
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
      std::unique_lock lock(workers_->sleep_mutex);
      num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
      workers_->wake.wait(lock, [&] {
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
