// Operations that note how long each of them took.
#ifndef FORERUN_CPP_OPS_CPU_TIMED_OPS_H_
#define FORERUN_CPP_OPS_CPU_TIMED_OPS_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/util/clock.h"

namespace forerun {

enum class Operation {
  kProjections,
  kGateUp,
  kDown,
  kHead,
  kNorm,
  kRope,
  kAttention,
  kGate,
  kRest
};
inline constexpr int kNumOperations = static_cast<int>(Operation::kRest) + 1;
inline constexpr const char* kOperationNames[kNumOperations] = {
    "q k v o",     "gate up",   "down",       "head", "norms",
    "rope, store", "attention", "activation", "rest"};

struct OperationTime {
  double seconds = 0;
  double weight_bytes = 0;
  double operations = 0;  // multiplications and additions of products
};

// Takes apart what CpuOps does as one, in its order: sums are those of all of a pass.
class TimedOps final : public Ops {
 public:
  explicit TimedOps(Ops& ops) : ops_(ops) {}

  // Products with this matrix are a line of their own.
  void SetHead(const PackedMatrix* head) { head_ = head; }
  const std::array<OperationTime, kNumOperations>& times() const { return times_; }
  void Clear() { times_ = {}; }

  std::string isa() const override { return ops_.isa(); }
  Memory& memory() override { return ops_.memory(); }
  void Reserve(const OpsLimits& limits) override { ops_.Reserve(limits); }
  std::unique_ptr<PackedMatrix> Pack(std::span<const WeightSource> sources) override {
    return ops_.Pack(sources);
  }
  void ForEach(int count, const std::function<void(int)>& body) override {
    ops_.ForEach(count, body);
  }
  std::unique_ptr<KvCache> MakeKvCache(const KvLayout& layout, int num_blocks) override {
    return ops_.MakeKvCache(layout, num_blocks);
  }
  const ForwardRows& Begin(const ForwardData& data) override { return ops_.Begin(data); }
  void Embed(const ForwardRows& rows, const PackedMatrix& table, float scale, Rows out) override {
    Time(Operation::kRest, [&] { ops_.Embed(rows, table, scale, out); });
  }
  void MatMul(ConstRows x, const PackedMatrix& weight, const float* bias, bool accumulate,
              Rows y) override {
    Multiply(&weight == head_ ? Operation::kHead : Operation::kProjections, x, weight, bias,
             accumulate, y);
  }
  void NormMatMul(ConstRows x, const NormWeight& norm, const PackedMatrix& weight,
                  const float* bias, Rows y) override {
    const Rows normed = RowsIn(normed_, x.rows, x.cols);
    RmsNorm(x, norm.weight, x.cols, norm.eps, normed);
    MatMul(normed, weight, bias, /*accumulate=*/false, y);
  }
  void GatedMatMul(ConstRows x, const NormWeight& norm, const GatedMlp& mlp, bool accumulate,
                   Rows y) override {
    const int num_gated = mlp.down.num_inputs();
    for (int begin = 0; begin < x.rows; begin += CpuOps::kMlpRows) {
      const int num_rows = std::min(CpuOps::kMlpRows, x.rows - begin);
      const Rows normed = RowsIn(normed_, num_rows, x.cols);
      const Rows gate_up = RowsIn(gate_up_, num_rows, 2 * num_gated);
      const Rows activated = RowsIn(activated_, num_rows, num_gated);
      RmsNorm(x.Slice(begin, num_rows), norm.weight, x.cols, norm.eps, normed);
      Multiply(Operation::kGateUp, normed, mlp.gate_up, mlp.gate_up_bias, false, gate_up);
      GatedActivation(gate_up, mlp.activation, activated);
      Multiply(Operation::kDown, activated, mlp.down, mlp.down_bias, accumulate,
               y.Slice(begin, num_rows));
    }
  }
  void RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out) override {
    Time(Operation::kNorm, [&] { ops_.RmsNorm(x, weight, group, eps, out); });
  }
  void RotateAndStore(Rows qkv, const QkNorms& norms, const ForwardRows& rows, const float* cos_sin,
                      int layer) override {
    Time(Operation::kRope, [&] { ops_.RotateAndStore(qkv, norms, rows, cos_sin, layer); });
  }
  void MoveKv(std::span<const KvMove> moves, KvCache& cache) override {
    Time(Operation::kRest, [&] { ops_.MoveKv(moves, cache); });
  }
  void Attention(ConstRows query, const ForwardRows& rows, RowSet which, int layer,
                 const AttentionShape& shape, Rows out) override {
    Time(Operation::kAttention, [&] { ops_.Attention(query, rows, which, layer, shape, out); });
  }
  void GatedActivation(ConstRows gate_up, Activation activation, Rows out) override {
    Time(Operation::kGate, [&] { ops_.GatedActivation(gate_up, activation, out); });
  }
  void Activate(ConstRows x, const float* bias, Activation activation, Rows out) override {
    Time(Operation::kGate, [&] { ops_.Activate(x, bias, activation, out); });
  }
  void Add(ConstRows y, Rows x) override {
    Time(Operation::kRest, [&] { ops_.Add(y, x); });
  }
  void Scale(float factor, Rows x) override {
    Time(Operation::kRest, [&] { ops_.Scale(factor, x); });
  }
  void SoftCap(Rows x, float cap) override {
    Time(Operation::kRest, [&] { ops_.SoftCap(x, cap); });
  }
  void Zero(Rows x) override {
    Time(Operation::kRest, [&] { ops_.Zero(x); });
  }
  void Copy(ConstRows x, Rows out) override {
    Time(Operation::kRest, [&] { ops_.Copy(x, out); });
  }
  void GatherRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) override {
    Time(Operation::kRest, [&] { ops_.GatherRows(x, rows, indices, out); });
  }
  void ScatterRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) override {
    Time(Operation::kRest, [&] { ops_.ScatterRows(x, rows, indices, out); });
  }
  void MoveRows(std::span<const KvMove> moves, Rows x) override {
    Time(Operation::kRest, [&] { ops_.MoveRows(moves, x); });
  }

 private:
  template <typename Fn>
  void Time(Operation operation, const Fn& fn) {
    const double begin = Now();
    fn();
    times_[static_cast<int>(operation)].seconds += Now() - begin;
  }

  void Multiply(Operation operation, ConstRows x, const PackedMatrix& weight, const float* bias,
                bool accumulate, Rows y) {
    Time(operation, [&] { ops_.MatMul(x, weight, bias, accumulate, y); });
    OperationTime& time = times_[static_cast<int>(operation)];
    time.weight_bytes += static_cast<double>(weight.num_bytes());
    time.operations += 2.0 * x.rows * weight.num_inputs() * weight.num_outputs();
  }

  static Rows RowsIn(std::vector<float>& scratch, int rows, int cols) {
    scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(rows) * cols));
    return {scratch.data(), rows, cols};
  }

  Ops& ops_;
  const PackedMatrix* head_ = nullptr;
  std::array<OperationTime, kNumOperations> times_;
  std::vector<float> normed_, gate_up_, activated_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_TIMED_OPS_H_
