// Forward passes as CUDA graphs.
#ifndef FORERUN_CUDA_OPS_PASS_GRAPHS_H_
#define FORERUN_CUDA_OPS_PASS_GRAPHS_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#include "cpp/ops/pass_graphs.h"
#include "cuda/ops/cuda_ops.h"
#include "cuda/use_gpu.h"

namespace forerun::cuda {

// A graph per shape of a pass. The first pass of a shape is launched as it is, so that its kernels
// are loaded; the second one is captured. Where the GPU has no memory for a graph, passes of its
// shape go on as they are. Throws DeviceError.
class CudaPassGraphs final : public PassGraphs {
 public:
  // Graphs that are kept, the last used ones.
  static constexpr int kMostGraphs = 128;
  // Captures of a shape that another thread may end before it is refused.
  static constexpr int kMostLost = 3;

  // The Ops must outlive it.
  explicit CudaPassGraphs(CudaOps& ops) : ops_(ops) { graphs_.reserve(kMostGraphs); }

  int PaddedRows(int num_rows) const override;
  bool Run(const std::function<void()>& body) override;

 private:
  struct StreamDeleter {
    void operator()(cudaStream_t stream) const {
      const UseGpu use;
      cudaStreamDestroy(stream);
    }
  };
  struct GraphDeleter {
    void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
  };
  struct ExecDeleter {
    void operator()(cudaGraphExec_t exec) const {
      const UseGpu use;
      cudaGraphExecDestroy(exec);
    }
  };
  using Captured = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, GraphDeleter>;
  using Exec = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, ExecDeleter>;
  struct Graph {
    CudaOps::Shape shape;
    Exec exec;
    bool was_launched = false;  // as it is
    bool is_refused = false;    // the GPU has no graph for it
    int num_lost = 0;           // captures that ended too early
    std::int64_t last_use = 0;
  };

  // That of the shape, or an empty one in place of the one that was used the longest ago.
  Graph& Find(const CudaOps::Shape& shape);
  // False: CUDA refuses it. Without a graph after true, the next pass is to try it again.
  bool Capture(Graph& graph, const std::function<void()>& body);
  cudaError_t EndCapture(Captured& captured);
  static bool Refused();  // false

  CudaOps& ops_;
  // The default stream cannot be captured.
  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, StreamDeleter> capturing_;
  std::vector<Graph> graphs_;
  std::int64_t num_uses_ = 0;
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_PASS_GRAPHS_H_
