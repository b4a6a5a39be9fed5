// The operations on the CPU: checks shapes, splits the work over the team, calls the kernels.
#ifndef FORERUN_CPP_OPS_CPU_CPU_OPS_H_
#define FORERUN_CPP_OPS_CPU_CPU_OPS_H_

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpp/ops/cpu/cpu_kv_cache.h"
#include "cpp/ops/cpu/find_integer_kernels.h"
#include "cpp/ops/cpu/host_scratch.h"
#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/cpu/packed_cache.h"
#include "cpp/ops/cpu/packed_matrix.h"
#include "cpp/ops/cpu/tree_tails.h"
#include "cpp/ops/ops.h"
#include "cpp/util/simd/isa.h"
#include "cpp/util/thread_team.h"

namespace forerun {

class CpuOps final : public Ops {
 public:
  // The MLP's wide activations are made for this many rows at a time, so that they stay in cache.
  static constexpr int kMlpRows = 256;

  // The team must outlive it.
  CpuOps(ThreadTeam& team, Isa isa)
      : CpuOps(team, Name(isa), CpuKernelsOf(isa), IntegerKernelsOf(isa)) {}
  CpuOps(ThreadTeam& team, std::string isa, const CpuKernels& kernels,
         const IntegerKernels& integer_kernels);

  std::string isa() const override { return isa_; }
  Memory& memory() override { return HostMemory(); }
  void Reserve(const OpsLimits& limits) override;
  using Ops::Pack;
  std::unique_ptr<PackedMatrix> Pack(std::span<const WeightSource> sources) override;
  void ForEach(int count, const std::function<void(int)>& body) override { team_.Run(count, body); }
  std::unique_ptr<PackedMatrix> Restore(std::span<const PartShape> parts, int num_inputs) override;
  std::unique_ptr<KvCache> MakeKvCache(const KvLayout& layout, int num_blocks) override;

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

  // Between these, matrices are taken from a file, as PackedCache says, or left there.
  void OpenCache(std::string path, std::string key);
  struct CacheOutcome {
    bool is_restored = false;  // whether all were taken from the file
    std::string problem = {};  // why they could not be left there; empty: they were
  };
  // Makes room for so many bytes; returns why there is none, or an empty text.
  using MakeRoomFn = std::function<std::string(std::int64_t num_bytes)>;
  // REQUIRES: it is open.
  CacheOutcome CloseCache(const MakeRoomFn& make_room);
  void DropCache() { cache_.reset(); }

  // The parts of RotateAndStore.
  // Rotates each head of x [rows, num_heads * head_dim] in place.
  void Rope(Rows x, int head_dim, std::span<const std::int32_t> positions, const float* cos_sin);
  // Writes row r of keys and values [rows, num_kv_heads * head_dim] to its sequence's slot.
  void StoreKv(ConstRows keys, ConstRows values, std::span<const SequenceRows> sequences, int layer,
               KvCache& cache);

 private:
  // Values under which an element-wise operation is over sooner than other threads would join.
  static constexpr int kSerialValues = 16384;

  // Calls fn(row) for each row; on this thread alone unless rows * cols is worth waking the others.
  template <typename Fn>
  void ForRows(int rows, int cols, const Fn& fn);

  // Activations as a product takes them.
  enum class InputForm { kFloat32, kRounded, kQuantized };
  struct Inputs {
    const void* data = nullptr;
    std::int64_t stride = 0;  // in elements
    std::int64_t row_bytes = 0;
  };
  using InputsByForm = std::array<Inputs, 3>;
  InputForm FormOf(WeightFormat format) const;
  void (*ProductOf(WeightFormat format) const)(const MatMulTask& task);
  // x in this form; what is made of it is scratch.
  Inputs InputsOf(ConstRows x, InputForm form);
  // Runs the product of every row of `task` with all tiles of the matrix.
  void RunProduct(const CpuMatrix& weight, const InputsByForm& inputs, const MatMulTask& task);
  // Neighbouring rows of a sequence, each seeing its own position more than the one before.
  struct RowRun {
    const SequenceRows* sequence;
    int row;
    int num_rows;
    int position;  // of the first
    int tail;      // in tree_tails_, or -1
  };
  void FindRowRuns(std::span<const SequenceRows> sequences, int block_size);
  void PlanAttention(const AttentionTask& shared, const KvLayout& layout, int num_heads);
  // Whole tasks, or their parts and then the joining of them, where whole ones are too few.
  void RunAttention();
  void RunAttentionParts();

  // Constant after construction.
  ThreadTeam& team_;
  const std::string isa_;
  const CpuKernels& kernels_;
  const IntegerKernels& integer_kernels_;

  // Where matrices are.
  WeightArena weights_;
  std::vector<std::unique_ptr<PackedFile>> files_;
  std::optional<PackedCache> cache_;  // while a model is loaded

  ForwardRows rows_;             // of the last Begin
  std::vector<TokenId> tokens_;  // likewise, those that only the device's memory has

  // Scratch of one call; grows to the largest and stays.
  HostScratch rounded_, quantized_, normed_, gate_up_, activated_;
  std::vector<float> ones_;
  std::vector<HostScratch> member_scratch_;
  std::vector<RowRun> row_runs_;
  TreeTails tree_tails_;
  std::vector<AttentionTask> attention_tasks_;
  std::vector<AttentionTask> part_tasks_;
  HostScratch part_states_;
};

template <typename Fn>
void CpuOps::ForRows(int rows, int cols, const Fn& fn) {
  const std::int64_t values = std::int64_t{rows} * cols;
  if (values < kSerialValues) {
    for (int row = 0; row < rows; ++row) fn(row);
    return;
  }
  const int rows_per_task = std::max<int>(1, kSerialValues / 4 / std::max(cols, 1));
  const int num_tasks = (rows + rows_per_task - 1) / rows_per_task;
  team_.Run(num_tasks, [&](int task) {
    const int end = std::min(rows, (task + 1) * rows_per_task);
    for (int row = task * rows_per_task; row < end; ++row) fn(row);
  });
}

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_CPU_OPS_H_
