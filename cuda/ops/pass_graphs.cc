#include "cuda/ops/pass_graphs.h"

#include <algorithm>
#include <utility>

#include "cuda/check_cuda.h"

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

void CudaPassGraphs::Run(const std::function<void()>& body) {
  bool is_new = false;
  Graph& graph = Find(ops_.shape(), is_new);
  graph.last_use = ++num_uses_;
  if (is_new) return body();
  if (graph.exec == nullptr) graph.exec = Capture(body);
  const UseGpu use;
  CheckCuda(cudaGraphLaunch(graph.exec.get(), /*stream=*/nullptr), kWanted);
}

CudaPassGraphs::Graph& CudaPassGraphs::Find(const CudaOps::Shape& shape, bool& is_new) {
  const auto found = std::ranges::find(graphs_, shape, &Graph::shape);
  is_new = found == graphs_.end();
  if (!is_new) return *found;
  if (std::ssize(graphs_) < kMostGraphs) return graphs_.emplace_back(Graph{shape, nullptr, 0});
  Graph& oldest = *std::ranges::min_element(graphs_, {}, &Graph::last_use);
  const UseGpu use;
  CheckCuda(cudaDeviceSynchronize(), kWanted);  // it may be running
  oldest = {shape, nullptr, 0};
  return oldest;
}

CudaPassGraphs::Exec CudaPassGraphs::Capture(const std::function<void()>& body) {
  const UseGpu use;
  if (capturing_ == nullptr) {
    cudaStream_t stream = nullptr;
    CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), kWanted);
    capturing_.reset(stream);
  }
  // Of other threads' calls none is forbidden meanwhile.
  CheckCuda(cudaStreamBeginCapture(capturing_.get(), cudaStreamCaptureModeThreadLocal), kWanted);
  ops_.LaunchOn(capturing_.get());
  const auto end = [&] {
    cudaGraph_t graph = nullptr;
    ops_.LaunchOn(nullptr);
    const cudaError_t status = cudaStreamEndCapture(capturing_.get(), &graph);
    return std::pair(status, graph);
  };
  try {
    body();
  } catch (...) {
    const cudaGraph_t graph = end().second;
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  const auto [ended, graph] = end();
  CheckCuda(ended, kWanted);
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, /*flags=*/0);
  cudaGraphDestroy(graph);
  CheckCuda(status, kWanted);
  return Exec(exec);
}

}  // namespace forerun::cuda
