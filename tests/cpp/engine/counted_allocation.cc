#include "tests/cpp/engine/counted_allocation.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace forerun::testing {

thread_local std::int64_t allocations_before_failure = -1;

namespace {

std::atomic<std::int64_t> num_live_bytes{0};
std::atomic<std::int64_t> num_allocations{0};

void* Allocate(std::size_t size) {
  if (allocations_before_failure >= 0 && allocations_before_failure-- == 0) throw std::bad_alloc();
  void* const memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  ++num_allocations;
  num_live_bytes += static_cast<std::int64_t>(malloc_usable_size(memory));
  return memory;
}

void Free(void* memory) {
  num_live_bytes -= static_cast<std::int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

std::int64_t NumAllocations() { return num_allocations; }

std::int64_t NumLiveBytes() { return num_live_bytes; }

}  // namespace forerun::testing

void* operator new(std::size_t size) { return forerun::testing::Allocate(size); }
void* operator new[](std::size_t size) { return forerun::testing::Allocate(size); }
void operator delete(void* memory) noexcept { forerun::testing::Free(memory); }
void operator delete[](void* memory) noexcept { forerun::testing::Free(memory); }
void operator delete(void* memory, std::size_t) noexcept { forerun::testing::Free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { forerun::testing::Free(memory); }
