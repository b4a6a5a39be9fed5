// A stack for each CUDA thread of a block, and switches between them and the host's.
#ifndef FORERUN_CUDA_EMULATION_FIBERS_H_
#define FORERUN_CUDA_EMULATION_FIBERS_H_

#include <cstddef>

namespace forerun::emulation {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kHost = kMaxThreads;  // the number of the host's context

// The thread's next switch starts `entry` on an empty stack.
void PrepareFiber(unsigned thread, void (*entry)());

// Leaves `from` and goes on in `to`; returns once something switches back. A fiber that `ends` is
// never switched to again.
void SwitchFiber(unsigned from, unsigned to, bool ends = false);

// The first call of a fiber's entry.
void ArriveInFiber();

// The thread whose stack holds the address; kHost if none does.
unsigned OwnerOfStack(const void* address);

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_FIBERS_H_
