#include "cuda/library/gpu.h"

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/check_cuda.h"
#include "cuda/library/find_gpu.h"
#include "cuda/ops/cuda_ops.h"
#include "cuda/use_gpu.h"
#include "cuda/verify/cuda_verifier.h"

namespace forerun::cuda {
namespace {

// On the default stream.
class GpuPassTimer : public PassTimer {
 public:
  void Start() override { Record(start_.get()); }
  void Stop() override { Record(stop_.get()); }
  double Seconds() override {
    const UseGpu use;
    float milliseconds = 0;
    CheckCuda(cudaEventElapsedTime(&milliseconds, start_.get(), stop_.get()), kWanted);
    return milliseconds / 1000.0;
  }

 private:
  static constexpr char kWanted[] = "the time of a forward pass";

  struct EventDeleter {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDeleter>;

  static Event MakeEvent() {
    const UseGpu use;
    cudaEvent_t event = nullptr;
    CheckCuda(cudaEventCreate(&event), kWanted);
    return Event(event);
  }
  static void Record(cudaEvent_t event) {
    const UseGpu use;
    CheckCuda(cudaEventRecord(event, /*stream=*/nullptr), kWanted);
  }

  const Event start_ = MakeEvent(), stop_ = MakeEvent();
};

class Gpu : public Backend {
 public:
  explicit Gpu(std::string name) : name_(std::move(name)) {}

  const std::string& name() const override { return name_; }
  Memory& memory() override { return ops_.memory(); }
  Ops& ops() override { return ops_; }
  MemorySize memory_size() const override {
    const UseGpu use;
    std::size_t num_free = 0, num_total = 0;
    CheckCuda(cudaMemGetInfo(&num_free, &num_total), "the size of the GPU's memory");
    return {static_cast<std::int64_t>(num_free), static_cast<std::int64_t>(num_total)};
  }

  std::unique_ptr<Verifier> MakeVerifier(const VerifierLimits& limits) override {
    return std::make_unique<CudaVerifier>(limits);
  }
  std::unique_ptr<PassTimer> MakePassTimer() override { return std::make_unique<GpuPassTimer>(); }

 private:
  std::string name_;
  CudaOps ops_;
};

}  // namespace

std::unique_ptr<Backend> OpenGpu() { return std::make_unique<Gpu>(FindGpu()); }

}  // namespace forerun::cuda
