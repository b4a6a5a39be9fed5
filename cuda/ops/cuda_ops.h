// Ops on a GPU.
//
// Products of bfloat16 and integer weights round their activations to bfloat16, and so do
// attention's with bfloat16 keys and values; sums are float32, in orders that no other row changes
// (product.h, attention.h).
#ifndef FORERUN_CUDA_OPS_CUDA_OPS_H_
#define FORERUN_CUDA_OPS_CUDA_OPS_H_

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "cpp/ops/ops.h"
#include "cuda/gpu_memory.h"
#include "cuda/ops/device_rows.h"
#include "cuda/ops/product.h"

namespace forerun::cuda {

// On the GPU of UseGpu and its default stream. Throws DeviceError where CUDA fails.
class CudaOps final : public Ops {
 public:
  // Attention is split into parts while it has fewer blocks than keep a GPU busy.
  explicit CudaOps(std::int64_t enough_blocks = 1024) : rows_(stream_, enough_blocks) {}

  std::string isa() const override { return "cuda"; }
  Memory& memory() override { return memory_; }
  void Reserve(const OpsLimits& limits) override;

  std::unique_ptr<PackedMatrix> Pack(std::span<const WeightSource> sources) override;
  using Ops::Pack;
  std::unique_ptr<KvCache> MakeKvCache(const KvLayout& layout, int num_blocks) override;
  std::unique_ptr<PassGraphs> MakePassGraphs() override;
  const ForwardRows& Begin(const ForwardData& data) override;

  void Embed(const ForwardRows& rows, const PackedMatrix& table, float scale, Rows out) override;
  void MatMul(ConstRows x, const PackedMatrix& weight, const float* bias, bool accumulate,
              Rows y) override;
  void NormMatMul(ConstRows x, const NormWeight& norm, const PackedMatrix& weight,
                  const float* bias, Rows y) override;
  void GatedMatMul(ConstRows x, const NormWeight& norm, const GatedMlp& mlp, bool accumulate,
                   Rows y) override;
  void RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out) override;
  void RotateAndStore(Rows qkv, const QkNorms& norms, const ForwardRows& rows, const float* cos_sin,
                      int layer) override;
  void MoveKv(std::span<const KvMove> moves, KvCache& cache) override;
  void Attention(ConstRows query, const ForwardRows& rows, RowSet which, int layer,
                 const AttentionShape& shape, Rows out) override;
  void GatedActivation(ConstRows gate_up, Activation activation, Rows out) override;
  void Activate(ConstRows x, const float* bias, Activation activation, Rows out) override;
  void Add(ConstRows y, Rows x) override;
  void Scale(float factor, Rows x) override;
  void SoftCap(Rows x, float cap) override;
  void Zero(Rows x) override;
  void Copy(ConstRows x, Rows out) override;
  void GatherRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) override;
  void ScatterRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) override;
  void MoveRows(std::span<const KvMove> moves, Rows x) override;

  // What the launches of the pass that has begun depend on.
  struct Shape {
    PassShape rows;
    std::array<const void*, 3> scratch = {};

    bool operator==(const Shape&) const = default;
  };
  Shape shape() const;
  // Where operations are launched, but for uploads; at first the default stream.
  void LaunchOn(cudaStream_t stream) { stream_ = stream; }

 private:
  void Product(const PackedMatrix& weight, ProductTask task, ConstRows x, Rows y);
  // The moves on the GPU, until the next call.
  const KvMove* UploadMoves(std::span<const KvMove> moves);
  Rows Scratch(AlignedBuffer& buffer, int rows, int cols);

  cudaStream_t stream_ = nullptr;
  GpuMemory memory_;
  DeviceRows rows_;
  StagedUpload moves_{stream_};
  AlignedBuffer activated_, gate_up_;  // of an MLP's slice of rows
  AlignedBuffer rounded_;              // x of a product of many rows
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_CUDA_OPS_H_
