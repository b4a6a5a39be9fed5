// A fixed set of threads that synchronise often: some two hundred times in a decode step.
//
// Run(n, fn) calls fn(i) once for every i in [0, n), spread over the team with the caller as a
// member, and returns when all are done. It waits for calls, not for threads: a worker that is late
// finds its tasks taken. Workers spin for a while between runs, then sleep until the next one, so
// that an idle engine costs nothing. Which thread gets which i is not fixed: fn's results must not
// depend on it.
//
// Run is not reentrant and one thread at a time may call it. In the child of a fork the team starts
// new threads with the first Run.
#ifndef FORERUN_CPP_UTIL_THREAD_TEAM_H_
#define FORERUN_CPP_UTIL_THREAD_TEAM_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpp/util/fork.h"

namespace forerun {

class ThreadTeam {
 public:
  // More threads than any machine has cores for would only wait for each other.
  static constexpr int kMaxThreads = 1024;

  // num_threads counts the caller, and is at most kMaxThreads; 0 takes one per core this process
  // may use. Throws InvalidArgument with the number that could be started.
  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();

  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int num_threads() const { return num_threads_; }

  // The first exception that a call of fn threw is thrown here, after all calls ended.
  // fn(i) or fn(i, member) with 0 <= member < num_threads(): member owns its scratch for the call.
  template <typename Fn>
  void Run(int num_tasks, const Fn& fn) {
    RunErased(num_tasks, &fn, [](const void* erased, int task, int member) {
      const Fn& call = *static_cast<const Fn*>(erased);
      if constexpr (std::is_invocable_v<const Fn&, int, int>) {
        call(task, member);
      } else {
        call(task);
      }
    });
  }

 private:
  using Invoke = void (*)(const void*, int task, int member);

  // What waits for other threads, and so is of no use to the child of a fork.
  struct Workers {
    const int num_forks = NumForks();
    std::vector<std::thread> threads;
    std::mutex sleep_mutex;
    std::condition_variable wake;
    std::mutex error_mutex;
  };

  void Start();
  void Stop();
  void RunErased(int num_tasks, const void* fn, Invoke invoke);
  void RunAlone(int num_tasks, const void* fn, Invoke invoke);
  void Publish(int num_tasks);
  void WorkerLoop(int member);
  // False when the team is being dissolved.
  bool WaitForWork();
  // Calls fn for tasks until none is left; how many that were.
  int TakeTasks(int member);
  void Call(const void* fn, Invoke invoke, int task, int member);

  // Constant after construction.
  int num_threads_ = 1;
  bool oversubscribed_ = false;  // more threads than cores

  // Changes in the child of a fork.
  std::unique_ptr<Workers> workers_;

  // Written by Run while no task is open, read by threads that have taken a task.
  const void* fn_ = nullptr;
  Invoke invoke_ = nullptr;

  // The run's number of tasks (high half) and the next one to take (low half). One word, so that
  // a thread that is late, or wakes during a later run, still takes a task that exists or none.
  alignas(64) std::atomic<std::uint64_t> tasks_{0};
  // Tasks of this run that workers have finished.
  alignas(64) std::atomic<int> num_finished_{0};
  alignas(64) std::atomic<int> num_sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::exception_ptr error_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_THREAD_TEAM_H_
