// What the emulation tells the race detector, where one is linked in.
#ifndef FORERUN_CUDA_EMULATION_DETECTOR_H_
#define FORERUN_CUDA_EMULATION_DETECTOR_H_

#include <cstddef>
#include <cstdint>

namespace forerun::emulation {

// kBeginCopy: a store from now on, whose value nothing may read yet.
enum class AccessKind : std::uint8_t { kLoad, kStore, kAtomic, kBeginCopy };

class Detector {
 public:
  virtual ~Detector() = default;
  virtual void BeginLaunch(const void* kernel) = 0;
  virtual void BeginBlock(unsigned num_threads) = 0;
  virtual void EndBlock() = 0;
  virtual void PassBarrier() = 0;  // all threads of the block
  virtual void SyncWarp(unsigned warp, unsigned mask) = 0;
  // By the running thread; `pc` is the instruction after it.
  virtual void Access(const void* address, std::size_t bytes, AccessKind kind, const void* pc) = 0;
  // By the host, to or from the device; `from` is null for a fill.
  virtual void Copied(const void* to, const void* from, std::size_t bytes) = 0;
  virtual void Freed(const void* address, std::size_t bytes) = 0;
};

extern Detector* detector;  // null but in the race build

// What WatchLoads named.
struct AddressRange {
  std::uintptr_t begin = 0, end = 0;
};
extern AddressRange watched_loads;

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_DETECTOR_H_
