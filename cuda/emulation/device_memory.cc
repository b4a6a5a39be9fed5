#include "cuda/emulation/device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace forerun::emulation {
namespace {

constexpr std::size_t kReservedBytes = std::size_t{1} << 40;  // of addresses, not of memory
constexpr std::size_t kAlignment = 256;                       // cudaMalloc's
constexpr std::size_t kRedZoneBytes = 256;                    // at least
constexpr std::size_t kPageBytes = 4096;

constexpr std::size_t RoundUp(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

std::size_t FullBytes(std::size_t bytes) { return RoundUp(bytes, kAlignment) + kRedZoneBytes; }

void GuardedFromSanitizer([[maybe_unused]] const char* begin, [[maybe_unused]] std::size_t bytes,
                          [[maybe_unused]] bool is_guarded) {
#if defined(__SANITIZE_ADDRESS__)
  if (is_guarded) {
    ASAN_POISON_MEMORY_REGION(begin, bytes);
  } else {
    ASAN_UNPOISON_MEMORY_REGION(begin, bytes);
  }
#endif
}

}  // namespace

DeviceMemory& device_memory() {
  static DeviceMemory memory;
  return memory;
}

void* DeviceMemory::Allocate(std::size_t bytes, std::size_t memory_bytes) {
  if (base_ == nullptr) {
    void* mapped = mmap(nullptr, kReservedBytes, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    base_ = begin_ = end_ = static_cast<char*>(mapped);
  }
  const auto used_addresses = static_cast<std::size_t>(end_ - base_);
  if (bytes > memory_bytes || allocated_bytes_ > memory_bytes - bytes ||
      FullBytes(bytes) > kReservedBytes - used_addresses) {
    return nullptr;
  }
  char* const address = end_;
  end_ += FullBytes(bytes);
  allocated_bytes_ += bytes;
  allocations_[address] = {bytes, true};
  Protect(/*open=*/true);
  GuardedFromSanitizer(address, FullBytes(bytes), false);
  std::memset(address, 0xff, FullBytes(bytes));
  GuardedFromSanitizer(address + bytes, FullBytes(bytes) - bytes, true);
  if (num_open_ == 0) Protect(/*open=*/false);
  return address;
}

std::size_t DeviceMemory::Free(void* address, bool* is_known) {
  const auto found = allocations_.find(static_cast<const char*>(address));
  *is_known = found != allocations_.end() && found->second.is_live;
  if (!*is_known) return 0;
  found->second.is_live = false;
  const std::size_t bytes = found->second.bytes;
  allocated_bytes_ -= bytes;
  GuardedFromSanitizer(found->first, FullBytes(bytes), true);
  // Whole pages go back to the system.
  char* const begin = base_ + RoundUp(static_cast<std::size_t>(found->first - base_), kPageBytes);
  char* const end = static_cast<char*>(address) + bytes;
  const auto whole =
      end > begin ? static_cast<std::size_t>(end - begin) / kPageBytes * kPageBytes : 0;
  if (whole > 0) madvise(begin, whole, MADV_DONTNEED);
  return bytes;
}

std::map<const char*, DeviceMemory::Allocation>::const_iterator DeviceMemory::Before(
    const void* address) const {
  const auto after = allocations_.upper_bound(static_cast<const char*>(address));
  return after == allocations_.begin() ? allocations_.end() : std::prev(after);
}

bool DeviceMemory::Holds(const void* address, std::size_t bytes) const {
  const auto found = Before(address);
  if (found == allocations_.end() || !found->second.is_live) return false;
  const auto offset = static_cast<std::size_t>(static_cast<const char*>(address) - found->first);
  return offset <= found->second.bytes && bytes <= found->second.bytes - offset;
}

bool DeviceMemory::InRange(const void* address) const {
  const char* const byte = static_cast<const char*>(address);
  return base_ != nullptr && byte >= base_ && byte < base_ + kReservedBytes;
}

std::string DeviceMemory::Describe(const void* address) const {
  const auto found = Before(address);
  if (found == allocations_.end()) return "no allocation";
  const auto offset = static_cast<std::size_t>(static_cast<const char*>(address) - found->first);
  return "byte " + std::to_string(offset) + " of " +
         (found->second.is_live ? "an allocation of " : "a freed allocation of ") +
         std::to_string(found->second.bytes) + " bytes";
}

std::string DeviceMemory::CheckRedZones() const {
#if !defined(__SANITIZE_ADDRESS__)
  for (auto it = FirstLive(); it != allocations_.end(); ++it) {
    const auto& [begin, allocation] = *it;
    if (!allocation.is_live) continue;
    const char* const zone = begin + allocation.bytes;
    const char* const end = begin + FullBytes(allocation.bytes);
    const char* const written = std::find_if(zone, end, [](char byte) { return byte != '\xff'; });
    if (written != end) return "something wrote out of bounds: " + Describe(written);
  }
#endif
  return {};
}

std::map<const char*, DeviceMemory::Allocation>::const_iterator DeviceMemory::FirstLive() const {
  return std::find_if(allocations_.lower_bound(begin_), allocations_.end(),
                      [](const auto& entry) { return entry.second.is_live; });
}

// One call for all that is live and what lies between: a launch costs two system calls, however
// many allocations there are. Their time grows with the range, so it leaves out what was freed
// before the first live allocation.
void DeviceMemory::Protect(bool open) {
  if (base_ == nullptr) return;
  if (open && !is_open_) {  // else what is open would not be closed
    const auto first = FirstLive();
    const char* const begin = first == allocations_.end() ? end_ : first->first;
    begin_ = base_ + static_cast<std::size_t>(begin - base_) / kPageBytes * kPageBytes;
  }
  mprotect(begin_, RoundUp(static_cast<std::size_t>(end_ - begin_), kPageBytes),
           open ? PROT_READ | PROT_WRITE : PROT_NONE);
  is_open_ = open;
}

DeviceMemory::Open::Open(DeviceMemory& memory) : memory_(memory) {
  if (memory_.num_open_++ == 0) memory_.Protect(/*open=*/true);
}

DeviceMemory::Open::~Open() {
  if (--memory_.num_open_ == 0) memory_.Protect(/*open=*/false);
}

}  // namespace forerun::emulation
