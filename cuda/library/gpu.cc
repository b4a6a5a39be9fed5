#include "cuda/library/gpu.h"

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <utility>

#include "cuda/check_cuda.h"
#include "cuda/library/find_gpu.h"
#include "cuda/ops/cuda_ops.h"
#include "cuda/use_gpu.h"
#include "cuda/verify/cuda_verifier.h"

namespace forerun::cuda {
namespace {

class Gpu : public Backend {
 public:
  explicit Gpu(std::string name) : name_(std::move(name)) {}

  const std::string& name() const override { return name_; }
  Memory& memory() override { return ops_.memory(); }
  Ops& ops() override { return ops_; }
  std::int64_t AvailableBytes() const override {
    const UseGpu use;
    std::size_t num_free = 0, num_total = 0;
    CheckCuda(cudaMemGetInfo(&num_free, &num_total), "the size of the GPU's memory");
    return static_cast<std::int64_t>(num_free);
  }

  std::unique_ptr<Verifier> MakeVerifier(const VerifierLimits& limits) override {
    return std::make_unique<CudaVerifier>(limits);
  }

 private:
  std::string name_;
  CudaOps ops_;
};

}  // namespace

std::unique_ptr<Backend> OpenGpu() { return std::make_unique<Gpu>(FindGpu()); }

}  // namespace forerun::cuda
