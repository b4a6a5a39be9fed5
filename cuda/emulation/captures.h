// Captures of streams into graphs, and what they forbid.
#ifndef FORERUN_CUDA_EMULATION_CAPTURES_H_
#define FORERUN_CUDA_EMULATION_CAPTURES_H_

#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

using EmulatedWork = std::function<void()>;

struct CUgraph_st {
  struct Node {
    double cost_us;
    EmulatedWork work;
  };
  std::vector<Node> nodes;
};
struct CUgraphExec_st {
  std::vector<CUgraph_st::Node> nodes;
};

namespace forerun::emulation {

// A stream's capture, from its begin to its end.
class Capture {
 public:
  explicit Capture(cudaStreamCaptureMode mode);
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  ~Capture();

  cudaError_t Add(CUgraph_st::Node node);
  // What was captured; null after a call that was forbidden.
  std::unique_ptr<CUgraph_st> Finish();
  void Invalidate() { graph_.reset(); }
  // Whether the calling thread must not do what CUDA calls potentially unsafe.
  bool Forbids() const;

 private:
  const cudaStreamCaptureMode mode_;
  const std::thread::id thread_ = std::this_thread::get_id();
  std::unique_ptr<CUgraph_st> graph_ = std::make_unique<CUgraph_st>();
};

// Before what CUDA calls potentially unsafe during a capture: allocations, waits, queries. An error
// where a capture forbids it to the calling thread, and that capture is lost.
cudaError_t StartUnsafeCall();
// The same of a wait for the whole device, which every capture forbids to all threads.
cudaError_t StartWaitForDevice();
// The calling thread's mode as at its start.
void ForgetCaptureMode();

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_CAPTURES_H_
