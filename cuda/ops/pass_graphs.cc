#include "cuda/ops/pass_graphs.h"

#include <algorithm>

#include "cuda/check_cuda.h"
#include "forerun/error.h"

namespace forerun::cuda {
namespace {

constexpr char kWanted[] = "a graph of a forward pass";

}  // namespace

int CudaPassGraphs::PaddedRows(int num_rows) const {
  const auto up_to = [&](int step) { return (num_rows + step - 1) / step * step; };
  if (num_rows <= 2) return std::max(num_rows, 0);
  if (num_rows <= 4) return 4;
  if (num_rows <= 64) return up_to(8);  // rows of a product's tile
  return num_rows <= 256 ? up_to(32) : 0;
}

bool CudaPassGraphs::Run(const std::function<void()>& body) {
  Graph& graph = Find(ops_.shape());
  graph.last_use = ++num_uses_;
  const bool is_kept = graph.exec != nullptr, was_refused = graph.is_refused;
  if (graph.was_launched && !is_kept && !was_refused) graph.is_refused = !Capture(graph, body);
  if (graph.exec == nullptr) {
    body();
    graph.was_launched = true;
    return was_refused;
  }
  const UseGpu use;
  const cudaError_t status = cudaGraphLaunch(graph.exec.get(), /*stream=*/nullptr);
  if (status == cudaErrorMemoryAllocation) {  // the first launch may take some
    cudaGetLastError();
    graph.exec.reset();
    graph.is_refused = true;
    body();
    return false;
  }
  CheckCuda(status, kWanted);
  return is_kept;
}

CudaPassGraphs::Graph& CudaPassGraphs::Find(const CudaOps::Shape& shape) {
  const auto found = std::ranges::find(graphs_, shape, &Graph::shape);
  if (found != graphs_.end()) return *found;
  if (std::ssize(graphs_) < kMostGraphs) {
    Graph& added = graphs_.emplace_back();
    added.shape = shape;
    return added;
  }
  Graph& oldest = *std::ranges::min_element(graphs_, {}, &Graph::last_use);
  if (oldest.exec != nullptr) {  // it may be running
    const UseGpu use;
    CheckCuda(cudaStreamSynchronize(/*stream=*/nullptr), kWanted);
  }
  oldest = {};
  oldest.shape = shape;
  return oldest;
}

bool CudaPassGraphs::Capture(Graph& graph, const std::function<void()>& body) {
  const UseGpu use;
  if (capturing_ == nullptr) {
    cudaStream_t stream = nullptr;
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return Refused();
    capturing_.reset(stream);
  }
  // In this mode other threads may allocate and wait for their streams meanwhile.
  if (cudaStreamBeginCapture(capturing_.get(), cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    return Refused();
  }
  ops_.LaunchOn(capturing_.get());
  bool is_captured = true;
  try {
    body();
  } catch (const DeviceError&) {
    is_captured = false;  // the same without a graph tells why
  } catch (...) {
    Captured captured;
    EndCapture(captured);
    throw;
  }
  Captured captured;
  const cudaError_t ended = EndCapture(captured);
  if (ended == cudaErrorStreamCaptureInvalidated) {  // as by a thread that waits for the device
    cudaGetLastError();
    return ++graph.num_lost < kMostLost;
  }
  if (ended != cudaSuccess || !is_captured) return Refused();
  cudaGraphExec_t exec = nullptr;
  if (cudaGraphInstantiate(&exec, captured.get(), /*flags=*/0) != cudaSuccess) return Refused();
  graph.exec.reset(exec);
  return true;
}

cudaError_t CudaPassGraphs::EndCapture(Captured& captured) {
  ops_.LaunchOn(nullptr);
  cudaGraph_t graph = nullptr;
  const cudaError_t status = cudaStreamEndCapture(capturing_.get(), &graph);
  captured.reset(graph);
  return status;
}

bool CudaPassGraphs::Refused() {
  cudaGetLastError();  // of a launch that comes later it is none
  return false;
}

}  // namespace forerun::cuda
