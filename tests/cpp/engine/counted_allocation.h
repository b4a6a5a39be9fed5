// Replaces the allocator of the test binary: allocations can be made to fail, and what is alive is
// counted.
#ifndef FORERUN_TESTS_CPP_ENGINE_COUNTED_ALLOCATION_H_
#define FORERUN_TESTS_CPP_ENGINE_COUNTED_ALLOCATION_H_

#include <cstdint>

namespace forerun::testing {

// Allocations of this thread left before one fails; below zero: none does.
extern thread_local std::int64_t allocations_before_failure;

// Allocations so far, by all threads.
std::int64_t NumAllocations();

// Bytes allocated and not freed, by all threads.
std::int64_t NumLiveBytes();

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_ENGINE_COUNTED_ALLOCATION_H_
