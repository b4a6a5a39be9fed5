// Streams and events: queues of work that runs at once or, with Options::lazy_streams, when
// the host waits. Streams are independent of each other, the null stream too, as with
// cudaStreamNonBlocking: only an event or a wait orders two of them.
#ifndef FORERUN_CUDA_EMULATION_STREAMS_H_
#define FORERUN_CUDA_EMULATION_STREAMS_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>

#include "cuda/emulation/captures.h"
#include "cuda/emulation/emulation.h"

struct CUstream_st {
  std::deque<EmulatedWork> queue;
  std::unique_ptr<forerun::emulation::Capture> capture;
  double now_us = 0;  // the clock that events read
};

namespace forerun::emulation {

// Held by every call of the runtime API, and so while a kernel runs.
std::recursive_mutex& ApiMutex();

// Nothing but the null stream is left of the queues; captures and errors are forgotten.
void ForgetStreams();

// What every call returns first: a missing driver or device, or an error that came before.
cudaError_t StandingError();
cudaError_t Remember(cudaError_t error);  // for cudaGetLastError

// Of the calling thread.
extern thread_local int current_device;

// Calls body() under the lock unless there is a standing error.
template <class Body>
cudaError_t CallOnAnyDevice(Body body) {
  const std::lock_guard lock(ApiMutex());
  if (const cudaError_t error = StandingError(); error != cudaSuccess) return Remember(error);
  return Remember(body());
}

// The same for what needs the current device, which must be the first.
template <class Body>
cudaError_t Call(Body body) {
  return CallOnAnyDevice([&] { return current_device == 0 ? body() : cudaErrorInvalidDevice; });
}

// Null for a handle that is not one, or no longer.
CUstream_st* FindStream(cudaStream_t stream);
// Runs the work, or queues it, or records it. `cost_us` moves the stream's clock.
cudaError_t Enqueue(cudaStream_t stream, double cost_us, EmulatedWork work);
// Runs what is queued in one stream, or in all; counts as a wait.
cudaError_t WaitFor(cudaStream_t stream);
cudaError_t WaitForAll();

// The launch that Options::failing_launch counted to.
cudaError_t FailLaunch(cudaStream_t stream);
// Counts down to the failure that was asked for: true when it is this one's turn.
bool IsFailing(int& countdown);

constexpr std::size_t kPlainSharedBytes = 48 << 10;  // of a block that does not ask for more
std::size_t MaxSharedBytes(int capability);          // of one that does

KernelCounters& CountersOf(const void* kernel);
void ForgetKernels();

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_STREAMS_H_
