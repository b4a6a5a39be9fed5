#include "cuda/emulation/captures.h"

#include <algorithm>
#include <utility>

#include "cuda/emulation/emulation.h"
#include "cuda/emulation/streams.h"

namespace forerun::emulation {
namespace {

std::vector<Capture*>& Captures() {
  static std::vector<Capture*> captures;
  return captures;
}

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

template <class IsForbidden>
cudaError_t Start(IsForbidden is_forbidden) {
  cudaError_t status = cudaSuccess;
  for (Capture* const capture : Captures()) {
    if (!is_forbidden(*capture)) continue;
    capture->Invalidate();
    status = cudaErrorStreamCaptureUnsupported;
  }
  return status;
}

}  // namespace

Capture::Capture(cudaStreamCaptureMode mode) : mode_(mode) { Captures().push_back(this); }

Capture::~Capture() { std::erase(Captures(), this); }

cudaError_t Capture::Add(CUgraph_st::Node node) {
  if (graph_ == nullptr) return cudaErrorStreamCaptureInvalidated;
  graph_->nodes.push_back(std::move(node));
  return cudaSuccess;
}

std::unique_ptr<CUgraph_st> Capture::Finish() { return std::move(graph_); }

bool Capture::Forbids() const {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  if (thread_ == std::this_thread::get_id()) return mode_ != cudaStreamCaptureModeRelaxed;
  return mode_ == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
}

cudaError_t StartUnsafeCall() {
  return Start([](const Capture& capture) { return capture.Forbids(); });
}

cudaError_t StartWaitForDevice() {
  return Start([](const Capture&) { return true; });
}

void ForgetCaptureMode() { thread_mode = cudaStreamCaptureModeGlobal; }

}  // namespace forerun::emulation

namespace emulation = forerun::emulation;
using emulation::Call;

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return emulation::CallOnAnyDevice([&] {
    if (mode == nullptr || *mode < cudaStreamCaptureModeGlobal ||
        *mode > cudaStreamCaptureModeRelaxed) {
      return cudaErrorInvalidValue;
    }
    std::swap(*mode, emulation::thread_mode);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return Call([&] {
    CUstream_st* const stream = emulation::FindStream(handle);
    if (handle == nullptr || stream == nullptr || stream->capture != nullptr) {
      return cudaErrorInvalidValue;
    }
    stream->capture = std::make_unique<emulation::Capture>(mode);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return Call([&] {
    CUstream_st* const stream = emulation::FindStream(handle);
    if (stream == nullptr || stream->capture == nullptr) return cudaErrorInvalidValue;
    *graph = stream->capture->Finish().release();
    stream->capture.reset();
    return *graph != nullptr ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
  });
}

// ---- Graphs: work with the arguments of its capture

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return Call([&] {
    if (emulation::IsFailing(emulation::options().failing_allocation)) {
      return cudaErrorMemoryAllocation;
    }
    *exec = new CUgraphExec_st{graph->nodes};
    return cudaSuccess;
  });
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return Call([&] {
    if (emulation::IsFailing(emulation::options().failing_launch)) {
      return emulation::FailLaunch(stream);
    }
    ++emulation::counters().graph_launches;
    for (const CUgraph_st::Node& node : exec->nodes) {
      const cudaError_t error = emulation::Enqueue(stream, node.cost_us, node.work);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
