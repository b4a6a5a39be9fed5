#include "cuda/emulation/scheduler.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

#include "cuda/emulation/detector.h"
#include "cuda/emulation/device_memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx{}, blockIdx{};
dim3 blockDim, gridDim;

namespace forerun::emulation {
namespace {

constexpr std::size_t kSharedAlignment = 128;

std::string Triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z) + ")";
}

// Of the exact size, so that AddressSanitizer sees an access beyond the end.
class DynamicSharedBuffer {
 public:
  explicit DynamicSharedBuffer(std::size_t bytes) {
    const std::size_t full = (bytes / kSharedAlignment + 2) * kSharedAlignment;
    buffer_.reset(static_cast<char*>(std::aligned_alloc(kSharedAlignment, full)));
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(buffer_.get() + bytes, full - bytes);
#endif
  }
  char* get() const { return buffer_.get(); }

 private:
  struct Release {
    void operator()(char* buffer) const { std::free(buffer); }
  };
  std::unique_ptr<char, Release> buffer_;
};

// A random order of blocks: i -> (step i + first) mod count, with step and count coprime.
struct BlockOrder {
  std::uint64_t count, first = 0, step = 1;
  bool is_reversed = false;
  std::uint64_t Index(std::uint64_t i) const {
    return is_reversed ? count - 1 - i : (step * i + first) % count;
  }
};

}  // namespace

Detector* detector = nullptr;
thread_local bool Scheduler::is_running_ = false;

Scheduler& scheduler() {
  static Scheduler instance;
  return instance;
}

std::uint64_t Scheduler::Random() {  // SplitMix64
  std::uint64_t z = (random_ += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

std::string Scheduler::ThreadName(unsigned thread) const {
  const uint3& index = threads_[thread].index;
  return "thread " + Triple(index.x, index.y, index.z);
}

std::string Scheduler::BlockName() const {
  return "block " + Triple(blockIdx.x, blockIdx.y, blockIdx.z) + " of kernel " +
         FunctionName(launch_->function);
}

void Scheduler::Fail(const std::string& what) const {
  throw Error(is_running_ ? what + " [" + ThreadName(thread_) + ", " + BlockName() + "]" : what);
}

void Scheduler::GiveUp(const std::string& what) {
  failure_ = what + " [" + ThreadName(thread_) + ", " + BlockName() + "]";
  SwitchFiber(thread_, kHost, /*ends=*/true);
  __builtin_unreachable();
}

// ---- Which thread is next

unsigned Scheduler::PopReady() {
  const Order order = options().order;
  if (order == Order::kForward || order == Order::kReverse) {
    const unsigned thread = ready_[next_ready_++];
    if (next_ready_ == ready_.size()) {
      ready_.clear();
      next_ready_ = 0;
    }
    return thread;
  }
  if (order == Order::kRandom) std::swap(ready_[Random() % ready_.size()], ready_.back());
  const unsigned thread = ready_.back();
  ready_.pop_back();
  return thread;
}

// Makes those of [first, first + count) runnable that are in this state, of these lanes.
void Scheduler::Release(unsigned first, unsigned count, State state, unsigned lanes) {
  const Order order = options().order;
  const bool is_down = order == Order::kReverse || order == Order::kDepthFirst;
  for (unsigned i = 0; i < count; ++i) {
    const unsigned thread = first + (is_down ? count - 1 - i : i);
    if (threads_[thread].state != state || (lanes >> (thread % kWarpSize) & 1u) == 0) continue;
    threads_[thread].state = State::kReady;
    ready_.push_back(thread);
  }
}

void Scheduler::Resume(unsigned from, unsigned thread, bool ends) {
  ++counters().switches;
  thread_ = thread;
  threadIdx = threads_[thread].index;
  SwitchFiber(from, thread, ends);
}

// The running thread cannot go on, or need not: another does, or the host, if none can.
void Scheduler::Yield(bool ends) {
  const unsigned self = thread_;
  if (next_ready_ == ready_.size()) {
    SwitchFiber(self, kHost, ends);
    return;
  }
  const unsigned next = PopReady();
  if (next != self) Resume(self, next, ends);
}

void Scheduler::Interrupt() {
  if (next_ready_ == ready_.size()) return;
  ready_.push_back(thread_);
  Yield();
}

void Scheduler::MayInterrupt() {
  if (options().order == Order::kRandom && Random() % 4 == 0) Interrupt();
}

// ---- Blocks

void Scheduler::FiberMain() {
  ArriveInFiber();
  Scheduler& self = scheduler();
  try {
    self.launch_->call(self.launch_->closure.data());
    self.ExitThread();
  } catch (const Error& error) {
    self.failure_ = error.what();
  }
  if (!self.failure_.empty()) SwitchFiber(self.thread_, kHost, /*ends=*/true);
  self.Yield(/*ends=*/true);
  __builtin_unreachable();
}

void Scheduler::ExitThread() {
  const unsigned lane = thread_ % kWarpSize, first = thread_ - lane;
  Warp& warp = warps_[thread_ / kWarpSize];
  threads_[thread_].state = State::kExited;
  warp.absent |= 1u << lane;
  for (unsigned other = 0; other < kWarpSize; ++other) {
    if ((warp.waiting >> other & 1u) == 0) continue;
    const Thread& waiting = threads_[first + other];
    if ((waiting.call.mask >> lane & 1u) == 0) continue;
    Fail("a thread exits whose lane is named by " + NameOf(waiting.call.op) + " at " +
         NameOf(waiting.site) + " (mask " + Hex(waiting.call.mask) + "), where " +
         ThreadName(first + other) + " waits");
  }
  // Threads that have exited do not count at barriers.
  --num_live_;
  if (num_live_ > 0 && num_at_barrier_ == num_live_) CompleteBarrier();
}

void Scheduler::ReportDeadlock() const {
  std::map<std::string, std::pair<unsigned, unsigned>> groups;  // what -> how many, the first
  for (unsigned thread = 0; thread < num_threads_; ++thread) {
    const Thread& waiting = threads_[thread];
    std::string what = "exited";
    if (waiting.state == State::kAtBarrier) what = "__syncthreads at " + NameOf(waiting.site);
    if (waiting.state == State::kInWarp) {
      what = NameOf(waiting.call.op) + " with mask " + Hex(waiting.call.mask) + " at " +
             NameOf(waiting.site);
    }
    ++groups.try_emplace(what, 0u, thread).first->second.first;
  }
  std::string text = "deadlock in " + BlockName() + ":";
  for (const auto& [what, group] : groups) {
    text += "\n  " + std::to_string(group.first) + " threads from " + ThreadName(group.second) +
            ": " + what;
  }
  throw Error(text);
}

void Scheduler::StartBlock() {
  ++counters().blocks;
  ++block_number_;
  counters().threads += num_threads_;
  num_live_ = num_threads_;
  num_at_barrier_ = 0;
  ready_.clear();
  next_ready_ = 0;
  failure_.clear();
  for (unsigned first = 0; first < num_threads_; first += kWarpSize) {
    const unsigned count = num_threads_ - first;
    warps_[first / kWarpSize] = {0, count >= kWarpSize ? 0 : ~0u << count};
  }
  for (unsigned thread = 0; thread < num_threads_; ++thread) {
    threads_[thread].state = State::kReady;
    threads_[thread].index = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
                              thread / (blockDim.x * blockDim.y)};
    PrepareFiber(thread, FiberMain);
  }
  Release(0, num_threads_, State::kReady);
  // What a block did not write must not look sane.
  std::memset(dynamic_shared_, 0xff, launch_->dynamic_shared_bytes);
  for (const StaticObject& object : static_shared_) {
    std::memset(reinterpret_cast<void*>(object.begin), 0xff, object.end - object.begin);
  }
  if (detector != nullptr) detector->BeginBlock(num_threads_);
}

void Scheduler::RunBlock() {
  StartBlock();
  is_running_ = true;
  Resume(kHost, PopReady());
  is_running_ = false;
  if (!failure_.empty()) throw Error(failure_);
  if (num_live_ > 0) ReportDeadlock();
  if (detector != nullptr) detector->EndBlock();
}

void Scheduler::Run(const Launched& launch) {
  launch_ = &launch;
  blockDim = launch.block;
  gridDim = launch.grid;
  num_threads_ = launch.block.x * launch.block.y * launch.block.z;
  const DynamicSharedBuffer buffer(launch.dynamic_shared_bytes);
  dynamic_shared_ = buffer.get();
  static_shared_ = StaticObjectsOf(launch.function);
  const DeviceMemory::Open open(device_memory());
  if (detector != nullptr) detector->BeginLaunch(launch.function);

  BlockOrder order{.count = std::uint64_t{gridDim.x} * gridDim.y * gridDim.z};
  order.is_reversed = options().order == Order::kReverse;
  if (options().order == Order::kRandom) {
    order.first = Random() % order.count;
    do {
      order.step = Random() % order.count + 1;
    } while (std::gcd(order.step, order.count) != 1);
  }
  for (std::uint64_t i = 0; i < order.count; ++i) {
    const std::uint64_t block = order.Index(i);
    blockIdx = {static_cast<unsigned>(block % gridDim.x),
                static_cast<unsigned>(block / gridDim.x % gridDim.y),
                static_cast<unsigned>(block / gridDim.x / gridDim.y)};
    RunBlock();
  }
  if (const std::string written = device_memory().CheckRedZones(); !written.empty()) {
    throw Error(written + " [kernel " + FunctionName(launch.function) + "]");
  }
}

void* DynamicShared() { return scheduler().dynamic_shared(); }

}  // namespace forerun::emulation
