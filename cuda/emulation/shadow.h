// What the race detector remembers of each byte of memory that kernels touched.
#ifndef FORERUN_CUDA_EMULATION_SHADOW_H_
#define FORERUN_CUDA_EMULATION_SHADOW_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace forerun::emulation {

struct PastAccess {
  std::uint32_t block = 0;     // a number that no other block of any launch has; 0: none
  std::uint32_t interval = 0;  // barriers that the block had passed
  std::uint32_t pc = 0;        // offset in the program
  std::uint16_t thread = 0;
  std::uint16_t clock = 0;  // of the thread's lane, within the interval
  bool is_atomic = false;
};

struct Shadow {
  PastAccess write;    // the last one
  PastAccess read[2];  // since then, of two threads, of two warps or blocks if there were such
  // More readers of the same warp are in the detector's overflow list.
  bool has_more_reads = false;
};

// Shadows by address. A page has one for each 4 bytes until an access begins or ends within them,
// and from then on one for each byte.
class ShadowMemory {
 public:
  // Calls visit(shadow, address, bytes) for each unit of the range.
  template <class Visit>
  void ForEach(std::uintptr_t begin, std::size_t bytes, Visit visit) {
    const std::uintptr_t end = begin + bytes;
    for (std::uintptr_t at = begin; at < end;) {
      Page& page = PageOf(at);
      const std::uintptr_t page_end = at / kPageBytes * kPageBytes + kPageBytes;
      const std::uintptr_t stop = end < page_end ? end : page_end;
      if (page.unit == 4 && ((at | stop) & 3) != 0) Split(page);
      for (; at < stop; at += page.unit) {
        visit(page.shadows[at % kPageBytes / page.unit], at, page.unit);
      }
    }
  }

  // Drops the whole pages of a range whose addresses are not used again.
  void Forget(std::uintptr_t begin, std::size_t bytes) {
    const std::uintptr_t first = (begin + kPageBytes - 1) / kPageBytes;
    const std::uintptr_t end = (begin + bytes) / kPageBytes;
    for (std::uintptr_t number = first; number < end; ++number) pages_.erase(number);
    cache_ = {};
  }

 private:
  static constexpr std::size_t kPageBytes = 4096;
  static constexpr std::size_t kCachedPages = 64;
  struct Page {
    std::size_t unit = 4;
    std::vector<Shadow> shadows = std::vector<Shadow>(kPageBytes / 4);
  };
  struct Cached {
    std::uintptr_t number = ~std::uintptr_t{0};
    Page* page = nullptr;
  };

  Page& PageOf(std::uintptr_t address) {
    const std::uintptr_t number = address / kPageBytes;
    Cached& cached = cache_[number % kCachedPages];
    if (cached.number != number) {
      std::unique_ptr<Page>& page = pages_[number];
      if (page == nullptr) page = std::make_unique<Page>();
      cached = {number, page.get()};
    }
    return *cached.page;
  }

  static void Split(Page& page) {
    std::vector<Shadow> bytes(kPageBytes);
    for (std::size_t i = 0; i < kPageBytes; ++i) bytes[i] = page.shadows[i / 4];
    page.shadows = std::move(bytes);
    page.unit = 1;
  }

  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  std::array<Cached, kCachedPages> cache_;
};

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_SHADOW_H_
