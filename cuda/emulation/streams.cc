#include "cuda/emulation/streams.h"

#include <algorithm>
#include <utility>

namespace forerun::emulation {
namespace {

struct Marker {
  cudaStream_t stream;
  bool is_done = false;
  double time_us = 0;
};

struct Queues {
  CUstream_st null_stream;
  std::vector<cudaStream_t> streams = {&null_stream};
  cudaError_t last_error = cudaSuccess;
  cudaError_t failure = cudaSuccess;  // of a launch, until a wait returns it
  bool failure_was_returned = false;  // from then on each call does
};

Queues& queues() {
  static Queues instance;
  return instance;
}

void RunOne(CUstream_st& stream) {
  const EmulatedWork work = std::move(stream.queue.front());
  stream.queue.pop_front();
  try {
    work();
  } catch (...) {
    // As after an error on a GPU, what was queued is lost.
    for (CUstream_st* other : queues().streams) other->queue.clear();
    throw;
  }
}

// Or a query of a stream.
cudaError_t StartWait(CUstream_st& stream) {
  if (stream.capture == nullptr) return StartUnsafeCall();
  stream.capture->Invalidate();
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t Waited() {
  ++counters().waits;
  queues().failure_was_returned = queues().failure != cudaSuccess;
  return queues().failure;
}

}  // namespace

thread_local int current_device = 0;

std::recursive_mutex& ApiMutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

void ForgetStreams() {
  for (CUstream_st* stream : queues().streams) {
    stream->queue.clear();
    stream->capture.reset();
    stream->now_us = 0;
  }
  ForgetCaptureMode();
  queues().last_error = queues().failure = cudaSuccess;
  queues().failure_was_returned = false;
}

cudaError_t StandingError() {
  int runtime_version = 0;
  cudaRuntimeGetVersion(&runtime_version);
  if (options().driver_version < runtime_version) return cudaErrorInsufficientDriver;
  if (options().num_devices == 0) return cudaErrorNoDevice;
  if (options().start_error != cudaSuccess) return options().start_error;
  return queues().failure_was_returned ? queues().failure : cudaSuccess;
}

cudaError_t Remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) queues().last_error = error;
  return error;
}

CUstream_st* FindStream(cudaStream_t stream) {
  if (stream == nullptr) return &queues().null_stream;
  const auto& streams = queues().streams;
  return std::find(streams.begin(), streams.end(), stream) != streams.end() ? stream : nullptr;
}

cudaError_t Enqueue(cudaStream_t handle, double cost_us, EmulatedWork work) {
  CUstream_st* const stream = FindStream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) return stream->capture->Add({cost_us, std::move(work)});
  stream->queue.push_back([stream, cost_us, work = std::move(work)] {
    stream->now_us += cost_us;
    if (queues().failure == cudaSuccess) work();
  });
  while (!options().lazy_streams && !stream->queue.empty()) RunOne(*stream);
  return cudaSuccess;
}

cudaError_t WaitFor(cudaStream_t handle) {
  CUstream_st* const stream = FindStream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (const cudaError_t error = StartWait(*stream); error != cudaSuccess) return error;
  while (!stream->queue.empty()) RunOne(*stream);
  return Waited();
}

cudaError_t WaitForAll() {
  std::vector<cudaStream_t> streams = queues().streams;
  if (options().order == Order::kReverse) std::reverse(streams.begin(), streams.end());
  for (CUstream_st* stream : streams) {
    while (!stream->queue.empty()) RunOne(*stream);
  }
  return Waited();
}

cudaError_t FailLaunch(cudaStream_t stream) {
  const cudaError_t error = options().launch_error;
  if (error == cudaErrorLaunchOutOfResources || error == cudaErrorMemoryAllocation) return error;
  return Enqueue(stream, 0, [error] { queues().failure = error; });
}

}  // namespace forerun::emulation

struct CUevent_st {
  std::shared_ptr<forerun::emulation::Marker> marker;  // of the last record
  bool is_timed;
};

namespace emulation = forerun::emulation;
using emulation::Call;

cudaError_t cudaGetLastError() {
  const std::lock_guard lock(emulation::ApiMutex());
  return std::exchange(emulation::queues().last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  const std::lock_guard lock(emulation::ApiMutex());
  return emulation::queues().last_error;
}

// ---- Streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return Call([&] {
    if (flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *stream = new CUstream_st;
    emulation::queues().streams.push_back(*stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(emulation::ApiMutex());
  if (stream == nullptr || emulation::FindStream(stream) == nullptr) {
    return emulation::Remember(cudaErrorInvalidResourceHandle);
  }
  while (!stream->queue.empty()) emulation::RunOne(*stream);
  std::erase(emulation::queues().streams, stream);
  delete stream;
  return emulation::Remember(emulation::StandingError());
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Call([&] { return emulation::WaitFor(stream); });
}
cudaError_t cudaDeviceSynchronize() {
  return Call([] {
    const cudaError_t error = emulation::StartWaitForDevice();
    return error != cudaSuccess ? error : emulation::WaitForAll();
  });
}

// Runs one step of the queue, so that polling ends.
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return Call([&] {
    CUstream_st* const stream = emulation::FindStream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t error = emulation::StartWait(*stream); error != cudaSuccess) return error;
    if (stream->queue.empty()) return emulation::queues().failure;
    emulation::RunOne(*stream);
    return cudaErrorNotReady;
  });
}

// ---- Events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return Call([&] {
    *event = new CUevent_st{nullptr, (flags & cudaEventDisableTiming) == 0};
    return cudaSuccess;
  });
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return Call([&] {
    CUstream_st* const stream = emulation::FindStream(handle);
    if (stream == nullptr || event == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
    const auto marker = std::make_shared<emulation::Marker>(stream);
    event->marker = marker;
    return emulation::Enqueue(handle, 0, [marker] {
      marker->is_done = true;
      marker->time_us = marker->stream->now_us;
    });
  });
}

namespace {

void RunUntil(const emulation::Marker& marker) {
  while (!marker.is_done && !marker.stream->queue.empty()) emulation::RunOne(*marker.stream);
}

}  // namespace

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Call([&] {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t error = emulation::StartUnsafeCall(); error != cudaSuccess) return error;
    if (event->marker != nullptr) RunUntil(*event->marker);
    return emulation::Waited();
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Call([&] {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t error = emulation::StartUnsafeCall(); error != cudaSuccess) return error;
    if (event->marker == nullptr || event->marker->is_done) return emulation::queues().failure;
    if (!event->marker->stream->queue.empty()) emulation::RunOne(*event->marker->stream);
    return cudaErrorNotReady;
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
  return Call([&] {
    CUstream_st* const stream = emulation::FindStream(handle);
    if (stream == nullptr || event == nullptr) return cudaErrorInvalidResourceHandle;
    if (flags != 0) return cudaErrorInvalidValue;
    if (event->marker == nullptr) return cudaSuccess;
    return emulation::Enqueue(handle, 0, [marker = event->marker, stream] {
      RunUntil(*marker);
      stream->now_us = std::max(stream->now_us, marker->time_us);
    });
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return Call([&] {
    if (start == nullptr || end == nullptr || start->marker == nullptr || end->marker == nullptr ||
        !start->is_timed || !end->is_timed) {
      return cudaErrorInvalidResourceHandle;
    }
    if (!start->marker->is_done || !end->marker->is_done) return cudaErrorNotReady;
    *milliseconds = static_cast<float>((end->marker->time_us - start->marker->time_us) / 1000);
    return cudaSuccess;
  });
}
