// The race detector. Kernels are compiled with -fsanitize=thread and linked with this in place of
// the sanitizer's library, so that each of their loads and stores calls it. What orders two
// accesses is CUDA's rules: a barrier of the block, __syncwarp among its lanes, the end of a
// launch. Shuffles and votes order no memory, and nothing orders two blocks of a launch.
#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "cuda/emulation/detector.h"
#include "cuda/emulation/device_memory.h"
#include "cuda/emulation/scheduler.h"
#include "cuda/emulation/shadow.h"
#include "cuda/emulation/streams.h"
#include "cuda/emulation/symbols.h"

namespace forerun::emulation {
namespace {

constexpr std::uint32_t kHostBlock = 1;
constexpr std::uint16_t kMaxClock = 0xffff;

enum class Space : std::uint8_t { kDevice, kShared, kLocal, kConstant };

class RaceDetector final : public Detector {
 public:
  RaceDetector() { detector = this; }

  void BeginLaunch(const void* kernel) override {
    first_block_ = block_ + 1;
    kernel_counters_ = &CountersOf(kernel);
  }

  void BeginBlock(unsigned num_threads) override {
    ++block_;
    interval_ = 0;
    num_threads_ = num_threads;
    is_interrupting_ = options().order == Order::kRandom && scheduler().Random() % 2 == 0;
    accesses_to_interrupt_ = 1 + scheduler().Random() % 64;
    shared_in_use_.clear();
    ForgetInterval();
  }

  void EndBlock() override {
    std::size_t bytes = scheduler().launch().dynamic_shared_bytes, static_bytes = 0;
    for (const StaticObject* object : shared_in_use_) static_bytes += object->end - object->begin;
    bytes += static_bytes;
    if (static_bytes > kPlainSharedBytes || bytes > MaxSharedBytes(options().capability)) {
      throw Error("too much shared memory: " + std::to_string(static_bytes) + " bytes static (" +
                  std::to_string(kPlainSharedBytes) + " may be), " + std::to_string(bytes) +
                  " in all [kernel " + FunctionName(scheduler().launch().function) + "]");
    }
  }

  void PassBarrier() override {
    ++interval_;
    ForgetInterval();
  }

  void SyncWarp(unsigned warp, unsigned mask) override {
    const unsigned first = warp * kWarpSize;
    std::uint16_t joined[kWarpSize] = {};
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      for (unsigned other = 0; other < kWarpSize; ++other) {
        joined[other] = std::max(joined[other], known_[first + lane][other]);
      }
      joined[lane] = std::max(joined[lane], clock_[first + lane]);
    }
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      std::memcpy(known_[first + lane], joined, sizeof joined);
      if (clock_[first + lane] == kMaxClock) {
        scheduler().GiveUp("more than 65,534 __syncwarp between two barriers: not supported");
      }
      ++clock_[first + lane];
    }
  }

  void Access(const void* address, std::size_t bytes, AccessKind kind, const void* pc) override {
    if (!Scheduler::is_running()) return;
    current_ = {block_,
                interval_,
                OffsetOf(pc),
                static_cast<std::uint16_t>(scheduler().thread()),
                clock_[scheduler().thread()],
                kind == AccessKind::kAtomic};
    const auto begin = reinterpret_cast<std::uintptr_t>(address);
    const Space space = SpaceOf(address, bytes);
    if (space == Space::kConstant && kind != AccessKind::kLoad) {
      Report("write to the program's memory");
    }
    if (space == Space::kLocal || space == Space::kConstant) return;
    is_shared_ = space == Space::kShared;
    if (!is_shared_) Count(begin, bytes, kind);
    shadows_.ForEach(begin, bytes, [&](Shadow& shadow, std::uintptr_t at, std::size_t) {
      // A block begins with nothing in its shared memory.
      if (is_shared_ && shadow.write.block != block_ && shadow.write.block != 0) shadow = {};
      if (is_shared_ && shadow.read[0].block != block_ && shadow.read[0].block != 0) shadow = {};
      if (kind == AccessKind::kLoad) {
        Load(shadow, at);
      } else {
        Store(shadow, at, kind == AccessKind::kAtomic);
        if (kind == AccessKind::kBeginCopy) shadow.write.block = 0;
      }
    });
    if (is_interrupting_ && --accesses_to_interrupt_ == 0) {
      accesses_to_interrupt_ = 1 + scheduler().Random() % 64;
      scheduler().Interrupt();
    }
  }

  void Copied(const void* to, const void* from, std::size_t bytes) override {
    // What nothing wrote stays so when it is copied, but the host may not have it.
    const bool to_device = device_memory().InRange(to);
    std::vector<bool> is_written(bytes, true);
    if (from != nullptr && device_memory().InRange(from)) {
      const auto source = reinterpret_cast<std::uintptr_t>(from);
      is_shared_ = false;
      shadows_.ForEach(source, bytes, [&](Shadow& shadow, std::uintptr_t at, std::size_t unit) {
        if (!to_device && shadow.write.block == 0) {
          throw Error("copy to the host of uninitialised " + NameOfMemory(at));
        }
        const auto first = is_written.begin() + static_cast<std::ptrdiff_t>(at - source);
        std::fill_n(first, unit, shadow.write.block != 0);
      });
    }
    if (!to_device) return;
    const auto target = reinterpret_cast<std::uintptr_t>(to);
    shadows_.ForEach(target, bytes, [&](Shadow& shadow, std::uintptr_t at, std::size_t) {
      shadow = {};
      shadow.write.block = is_written[at - target] ? kHostBlock : 0;
    });
  }

  void Freed(const void* address, std::size_t bytes) override {
    shadows_.Forget(reinterpret_cast<std::uintptr_t>(address), bytes);
  }

  void NoteMisaligned(const void* address, std::size_t bytes, const void* pc) {
    if (!Scheduler::is_running() || OwnerOfStack(address) != kHost) return;
    scheduler().GiveUp("misaligned access of " + std::to_string(bytes) + " bytes at " +
                       LinesOf(OffsetOf(pc)));
  }

 private:
  void ForgetInterval() {
    for (unsigned thread = 0; thread < num_threads_; ++thread) {
      clock_[thread] = 1;
      std::memset(known_[thread], 0, sizeof known_[thread]);
    }
    more_reads_.clear();
  }

  // Reports what is no memory of the thread's.
  Space SpaceOf(const void* address, std::size_t bytes) {
    if (const unsigned owner = OwnerOfStack(address); owner != kHost) {
      if (owner != scheduler().thread()) Report("access to another thread's local memory");
      return Space::kLocal;
    }
    if (device_memory().InRange(address)) {
      if (!device_memory().Holds(address, bytes)) {
        Report("access of " + std::to_string(bytes) +
               " bytes out of bounds: " + device_memory().Describe(address));
      }
      return Space::kDevice;
    }
    const auto begin = reinterpret_cast<std::uintptr_t>(address);
    const Launched& launch = scheduler().launch();
    const auto dynamic = reinterpret_cast<std::uintptr_t>(scheduler().dynamic_shared());
    if (begin - dynamic < launch.dynamic_shared_bytes) {
      if (begin - dynamic + bytes > launch.dynamic_shared_bytes) {
        Report("access beyond the dynamic shared memory");
      }
      return Space::kShared;
    }
    if (const StaticObject* object = SharedObject(begin); object != nullptr) {
      if (begin + bytes > object->end) Report("access beyond the shared " + object->Name());
      shared_in_use_.insert(object);
      return Space::kShared;
    }
    const auto arguments = reinterpret_cast<std::uintptr_t>(launch.closure.data());
    if (begin - arguments >= launch.closure_bytes && !IsInImage(address)) {
      Report("access to the host's memory, or beyond shared memory");
    }
    return Space::kConstant;
  }

  // Null for other static objects: constants and the emulation's own.
  static const StaticObject* SharedObject(std::uintptr_t address) {
    const auto& objects = StaticObjects();
    const auto after = std::upper_bound(
        objects.begin(), objects.end(), address,
        [](std::uintptr_t at, const StaticObject& object) { return at < object.begin; });
    if (after == objects.begin()) return nullptr;
    const StaticObject& object = *std::prev(after);
    return address < object.end ? &object : nullptr;
  }

  void Count(std::uintptr_t begin, std::size_t bytes, AccessKind kind) {
    if (kind == AccessKind::kLoad || kind == AccessKind::kAtomic) {
      counters().bytes_loaded += bytes;
      kernel_counters_->bytes_loaded += bytes;
      if (begin >= watched_loads.begin && begin < watched_loads.end) {
        counters().watched_bytes_loaded += bytes;
      }
    }
    if (kind != AccessKind::kLoad) {
      counters().bytes_stored += bytes;
      kernel_counters_->bytes_stored += bytes;
    }
  }

  // Whether a past access happened before what the running thread does now.
  bool IsOrdered(const PastAccess& past) const {
    if (past.block != block_) return past.block < first_block_;
    if (past.interval != interval_ || past.thread == current_.thread) return true;
    if (past.thread / kWarpSize != current_.thread / kWarpSize) return false;
    return known_[current_.thread][past.thread % kWarpSize] >= past.clock;
  }
  bool IsRace(const PastAccess& past) const {
    return past.block != 0 && !(past.is_atomic && current_.is_atomic) && !IsOrdered(past);
  }

  void Load(Shadow& shadow, std::uintptr_t at) {
    if (shadow.write.block == 0) Report("read of uninitialised " + NameOfMemory(at));
    if (IsRace(shadow.write)) ReportRace("reads", shadow.write, "wrote", at);
    KeepRead(shadow, at);
  }

  void Store(Shadow& shadow, std::uintptr_t at, bool is_atomic) {
    const char* const does = is_atomic ? "updates" : "writes";
    if (is_atomic && shadow.write.block == 0) {
      Report("atomic on uninitialised " + NameOfMemory(at));
    }
    if (IsRace(shadow.write)) ReportRace(does, shadow.write, "wrote", at);
    for (const PastAccess& read : shadow.read) {
      if (IsRace(read)) ReportRace(does, read, "read", at);
    }
    if (shadow.has_more_reads) {
      for (const PastAccess& read : more_reads_[at]) {
        if (IsRace(read)) ReportRace(does, read, "read", at);
      }
    }
    shadow = {};
    shadow.write = current_;
  }

  // A later write by a third warp, or of one of two warps, races with one of two readers of two
  // warps; so only while all readers are of one warp must each be kept.
  void KeepRead(Shadow& shadow, std::uintptr_t at) {
    const auto is_past = [&](const PastAccess& read) { return read.block == 0 || IsOrdered(read); };
    const auto is_same_warp = [](const PastAccess& a, const PastAccess& b) {
      return a.block == b.block && a.thread / kWarpSize == b.thread / kWarpSize;
    };
    if (is_past(shadow.read[0])) {
      shadow.read[0] = current_;
    } else if (is_past(shadow.read[1]) || (is_same_warp(shadow.read[0], shadow.read[1]) &&
                                           !is_same_warp(shadow.read[0], current_))) {
      shadow.read[1] = current_;
    } else if (is_same_warp(shadow.read[0], shadow.read[1])) {
      auto& more = more_reads_[at];
      const auto found = std::find_if(more.begin(), more.end(), [&](const PastAccess& read) {
        return read.thread == current_.thread;
      });
      if (found == more.end()) {
        more.push_back(current_);
      } else {
        *found = current_;
      }
      shadow.has_more_reads = true;
    }
  }

  std::string NameOfMemory(std::uintptr_t at) const {
    if (!is_shared_) {
      return "global memory (" + device_memory().Describe(reinterpret_cast<const void*>(at)) + ")";
    }
    const StaticObject* const object = SharedObject(at);
    if (object == nullptr) return "shared memory (dynamic)";
    return "shared memory (" + object->Name() + ", byte " + std::to_string(at - object->begin) +
           ")";
  }

  static std::string NameOfThread(unsigned thread) { return "thread " + std::to_string(thread); }

  [[noreturn]] void Report(const std::string& what) const {
    scheduler().GiveUp(what + ": " + NameOfThread(current_.thread) + " at " + LinesOf(current_.pc));
  }

  [[noreturn]] void ReportRace(const std::string& does, const PastAccess& past,
                               const std::string& did, std::uintptr_t at) const {
    scheduler().GiveUp("race on " + NameOfMemory(at) + ": " + NameOfThread(current_.thread) + " " +
                       does + " at " + LinesOf(current_.pc) + "; " + NameOfThread(past.thread) +
                       (past.block == block_ ? " " : " of another block ") + did + " at " +
                       LinesOf(past.pc));
  }

  ShadowMemory shadows_;
  std::unordered_map<std::uintptr_t, std::vector<PastAccess>> more_reads_;  // of this interval

  // Of the launch.
  std::uint32_t first_block_ = 0;
  KernelCounters* kernel_counters_ = nullptr;

  // Of the block.
  std::uint32_t block_ = kHostBlock;
  std::uint32_t interval_ = 0;
  unsigned num_threads_ = 0;
  std::set<const StaticObject*> shared_in_use_;
  bool is_interrupting_ = false;
  std::uint64_t accesses_to_interrupt_ = 0;
  std::uint16_t clock_[kMaxThreads] = {};
  std::uint16_t known_[kMaxThreads][kWarpSize] = {};  // [t][l]: the clock of lane l that t has seen

  // Of the access.
  PastAccess current_;
  bool is_shared_ = false;
};

RaceDetector g_detector;

void Accessed(const void* address, std::size_t bytes, AccessKind kind, const void* pc) {
  g_detector.Access(address, bytes, kind, pc);
}
// For accesses that the compiler takes for aligned.
void AccessedAligned(const void* address, std::size_t bytes, AccessKind kind, const void* pc) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    g_detector.NoteMisaligned(address, bytes, pc);
  }
  g_detector.Access(address, bytes, kind, pc);
}

}  // namespace
}  // namespace forerun::emulation

// ---- What the compiler calls. Atomics come from the host's part of a kernel file.
using forerun::emulation::Accessed;
using forerun::emulation::AccessedAligned;
using forerun::emulation::AccessKind;

#define FORERUN_TSAN_ACCESS(bytes)                                                    \
  void __tsan_read##bytes(void* address) {                                            \
    AccessedAligned(address, bytes, AccessKind::kLoad, __builtin_return_address(0));  \
  }                                                                                   \
  void __tsan_write##bytes(void* address) {                                           \
    AccessedAligned(address, bytes, AccessKind::kStore, __builtin_return_address(0)); \
  }                                                                                   \
  void __tsan_unaligned_read##bytes(void* address) {                                  \
    Accessed(address, bytes, AccessKind::kLoad, __builtin_return_address(0));         \
  }                                                                                   \
  void __tsan_unaligned_write##bytes(void* address) {                                 \
    Accessed(address, bytes, AccessKind::kStore, __builtin_return_address(0));        \
  }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}
FORERUN_TSAN_ACCESS(1)
FORERUN_TSAN_ACCESS(2)
FORERUN_TSAN_ACCESS(4)
FORERUN_TSAN_ACCESS(8)
FORERUN_TSAN_ACCESS(16)
void __tsan_read_range(void* address, std::size_t bytes) {
  Accessed(address, bytes, AccessKind::kLoad, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
  Accessed(address, bytes, AccessKind::kStore, __builtin_return_address(0));
}
std::uint8_t __tsan_atomic8_load(const volatile std::uint8_t* p, int) { return *p; }
std::uint32_t __tsan_atomic32_load(const volatile std::uint32_t* p, int) { return *p; }
std::uint64_t __tsan_atomic64_load(const volatile std::uint64_t* p, int) { return *p; }
void __tsan_atomic32_store(volatile std::uint32_t* p, std::uint32_t v, int) { *p = v; }
std::uint32_t __tsan_atomic32_fetch_add(volatile std::uint32_t* p, std::uint32_t v, int) {
  return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
}
