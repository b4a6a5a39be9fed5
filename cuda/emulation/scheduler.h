// Runs the threads of one block at a time as fibers. A thread runs until it reaches a barrier, a
// collective that other lanes have not reached, or its end; Options::order says which is next.
//
// One launch at a time, on any host thread, under the emulation's lock.
#ifndef FORERUN_CUDA_EMULATION_SCHEDULER_H_
#define FORERUN_CUDA_EMULATION_SCHEDULER_H_

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/emulation/emulation.h"
#include "cuda/emulation/fibers.h"
#include "cuda/emulation/symbols.h"

namespace forerun::emulation {

// A launch whose arguments were copied.
struct Launched {
  const void* function;
  std::vector<std::max_align_t> closure;
  std::size_t closure_bytes;
  void (*call)(const void* closure);
  dim3 grid, block;
  std::size_t dynamic_shared_bytes;
};

class Scheduler {
 public:
  // Throws Error for what the kernel did wrong.
  void Run(const Launched& launch);

  // ---- For the running thread
  int WaitAtBarrier(Vote vote, bool predicate, const Site& site);
  std::uint64_t WaitInWarp(const WarpCall& call, const Site& site);
  // Lets another runnable thread go on, if there is one.
  void Interrupt();
  // In random order, sometimes.
  void MayInterrupt();
  // The kernel was wrong. Fail throws; GiveUp leaves the block without, for callers that cannot.
  [[noreturn]] void Fail(const std::string& what) const;
  [[noreturn]] void GiveUp(const std::string& what);

  // Whether the calling host thread is the one that runs a kernel.
  static bool is_running() { return is_running_; }
  unsigned thread() const { return thread_; }
  // The running block's, of all that ran in this process.
  std::uint64_t block_number() const { return block_number_; }
  const Launched& launch() const { return *launch_; }
  char* dynamic_shared() const { return dynamic_shared_; }

  std::uint64_t Random();
  void SeedFrom(std::uint64_t seed) { random_ = seed; }

 private:
  enum class State : std::uint8_t { kReady, kAtBarrier, kInWarp, kExited };
  struct Thread {
    State state = State::kReady;
    uint3 index{};
    Site site;  // of what it waits for
    WarpCall call{};
  };
  struct Warp {
    unsigned waiting = 0;  // lanes in a collective
    unsigned absent = 0;   // lanes that have exited or never existed
  };

  static void FiberMain();
  void RunBlock();
  void StartBlock();
  void ExitThread();
  [[noreturn]] void ReportDeadlock() const;

  unsigned PopReady();
  void Release(unsigned first, unsigned count, State state, unsigned lanes = ~0u);
  void Resume(unsigned from, unsigned thread, bool ends = false);
  void Yield(bool ends = false);

  void CompleteBarrier();
  void CheckLanes(const WarpCall& call, const Site& site) const;
  void ExchangeLanes(const WarpCall& call, const Site& site);
  unsigned SourceLane(unsigned lane, const WarpCall& call) const;

  std::string ThreadName(unsigned thread) const;
  std::string BlockName() const;

  // Fixed for a launch.
  const Launched* launch_ = nullptr;
  unsigned num_threads_ = 0;
  char* dynamic_shared_ = nullptr;
  std::vector<StaticObject> static_shared_;

  // Change as a block runs.
  static thread_local bool is_running_;
  unsigned thread_ = 0;
  unsigned num_live_ = 0;
  std::array<Thread, kMaxThreads> threads_;
  std::array<Warp, kMaxThreads / kWarpSize> warps_;
  std::vector<unsigned> ready_;  // from next_ready_ on
  std::size_t next_ready_ = 0;
  std::string failure_;
  std::uint64_t block_number_ = 0;

  // The barrier that threads are waiting at, and what the last one gave.
  unsigned num_at_barrier_ = 0;
  Site barrier_site_;
  Vote vote_ = Vote::kNone;
  int votes_ = 0, vote_result_ = 0;

  std::uint64_t random_ = 0;
};

Scheduler& scheduler();

std::string NameOf(const Site& site);
std::string NameOf(WarpOp op);
std::string Hex(unsigned value);

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_SCHEDULER_H_
