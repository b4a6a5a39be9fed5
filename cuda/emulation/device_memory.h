// The emulated device's memory: one range of addresses, closed to the host.
//
// A host access to it faults, as on a GPU: it is open only while an Open object lives, in kernels
// and copies. New memory holds 0xff bytes, which as floats are NaN. Addresses are never used again.
// Each allocation is followed by a red zone; AddressSanitizer guards it, and in other builds
// CheckRedZones finds what was written there.
#ifndef FORERUN_CUDA_EMULATION_DEVICE_MEMORY_H_
#define FORERUN_CUDA_EMULATION_DEVICE_MEMORY_H_

#include <cstddef>
#include <map>
#include <string>

namespace forerun::emulation {

class DeviceMemory {
 public:
  // Null when less than this is free.
  void* Allocate(std::size_t bytes, std::size_t memory_bytes);
  // The size of what was freed; false in `is_known` for what is no live allocation's address.
  std::size_t Free(void* address, bool* is_known);

  // Whether all of it lies in one live allocation.
  bool Holds(const void* address, std::size_t bytes = 1) const;
  bool InRange(const void* address) const;  // live, freed or never allocated
  // In words, for reports: the allocation that holds it, was freed there or ends before it.
  std::string Describe(const void* address) const;
  std::size_t allocated_bytes() const { return allocated_bytes_; }

  // Empty, or which red zone was written to.
  std::string CheckRedZones() const;

  class Open {
   public:
    explicit Open(DeviceMemory& memory);
    ~Open();
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;

   private:
    DeviceMemory& memory_;
  };

 private:
  struct Allocation {
    std::size_t bytes;
    bool is_live;
  };
  void Protect(bool open);
  std::map<const char*, Allocation>::const_iterator Before(const void* address) const;
  std::map<const char*, Allocation>::const_iterator FirstLive() const;

  char* base_ = nullptr;
  char* end_ = nullptr;  // of what was ever allocated, red zones included
  // Nothing before it is live or open.
  char* begin_ = nullptr;
  bool is_open_ = false;
  int num_open_ = 0;
  std::size_t allocated_bytes_ = 0;
  std::map<const char*, Allocation> allocations_;  // by address; freed ones stay for reports
};

DeviceMemory& device_memory();

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_DEVICE_MEMORY_H_
