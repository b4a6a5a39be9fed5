#include <algorithm>
#include <utility>

#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/ops/cpu/task_runs.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// Weights that one thread multiplies sooner than another would join.
constexpr std::int64_t kSerialProducts = 16384;
// Activations that stay in a second-level cache beside a weight tile.
constexpr std::int64_t kPanelBytes = 192 * 1024;

// Elements of a row that is made for bfloat16 and for integer weights.
std::int64_t RoundedStride(int cols) { return (cols + 1) / 2 * 2; }
std::int64_t QuantizedStride(int cols) {
  return std::int64_t{(cols + kPaddedInputs - 1) / kPaddedInputs} * (kPaddedInputs / kWeightGroup);
}

std::int64_t RoundedBytes(int cols) { return RoundedStride(cols) * sizeof(std::uint16_t); }
std::int64_t QuantizedBytes(int cols) { return QuantizedStride(cols) * sizeof(QuantizedGroup); }

}  // namespace

void CpuOps::Reserve(const OpsLimits& limits) {
  const int mlp_rows = std::min(limits.max_rows, kMlpRows);
  rows_.Reserve(limits.max_rows);
  for (const auto& [rows, cols] :
       {std::pair{limits.max_rows, limits.max_inputs}, std::pair{mlp_rows, limits.max_gated}}) {
    if (kernels_.round_row != nullptr) rounded_.Grow(rows * RoundedBytes(cols));
    quantized_.Grow(rows * QuantizedBytes(cols));
  }
  normed_.AsRows(limits.max_rows, limits.max_inputs);
  gate_up_.AsRows(mlp_rows, 2 * limits.max_gated);
  activated_.AsRows(mlp_rows, limits.max_gated);
  if (std::ssize(ones_) < limits.max_inputs) ones_.resize(limits.max_inputs, 1.0f);
}

CpuOps::InputForm CpuOps::FormOf(WeightFormat format) const {
  if (HasIntegers(format)) return InputForm::kQuantized;
  const bool rounds = format == WeightFormat::kBFloat16 && kernels_.round_row != nullptr;
  return rounds ? InputForm::kRounded : InputForm::kFloat32;
}

void (*CpuOps::ProductOf(WeightFormat format) const)(const MatMulTask& task) {
  if (format == WeightFormat::kFloat32) return kernels_.matmul_float32;
  if (format == WeightFormat::kBFloat16) return kernels_.matmul_bfloat16;
  return integer_kernels_.matmul[static_cast<int>(format)];
}

CpuOps::Inputs CpuOps::InputsOf(ConstRows x, InputForm form) {
  if (form == InputForm::kFloat32) {
    return {x.data, x.stride, x.stride * static_cast<std::int64_t>(sizeof(float))};
  }
  if (form == InputForm::kRounded) {
    const std::int64_t stride = RoundedStride(x.cols);
    rounded_.Grow(x.rows * RoundedBytes(x.cols));
    auto* rounded = rounded_.as<std::uint16_t>();
    ForRows(x.rows, x.cols,
            [&](int row) { kernels_.round_row(x.row(row), x.cols, rounded + row * stride); });
    return {rounded, stride, RoundedBytes(x.cols)};
  }
  const std::int64_t stride = QuantizedStride(x.cols);
  quantized_.Grow(x.rows * QuantizedBytes(x.cols));
  auto* groups = quantized_.as<QuantizedGroup>();
  ForRows(x.rows, x.cols, [&](int row) {
    integer_kernels_.quantize_row(x.row(row), x.cols, groups + row * stride);
  });
  return {groups, stride, QuantizedBytes(x.cols)};
}

void CpuOps::RunProduct(const CpuMatrix& weight, const InputsByForm& inputs,
                        const MatMulTask& task) {
  const auto run = [&](int row_begin, int row_end, int tile_begin, int tile_end) {
    for (const MatrixPart& part : weight.parts()) {
      const int begin = std::max(tile_begin, part.tile_begin);
      const int end = std::min(tile_end, part.tile_begin + part.num_tiles);
      if (begin >= end) continue;
      const Inputs& x = inputs[static_cast<int>(FormOf(part.format))];
      MatMulTask own = task;
      own.weights = part.data;
      own.num_outputs = part.num_outputs;
      own.tile_begin = begin - part.tile_begin;
      own.tile_end = end - part.tile_begin;
      own.x = static_cast<const std::byte*>(x.data) + row_begin * x.row_bytes;
      own.x_stride = x.stride;
      own.num_rows = row_end - row_begin;
      if (task.bias != nullptr) own.bias += part.output_begin;
      own.y += row_begin * task.y_stride + part.output_begin;
      ProductOf(part.format)(own);
    }
  };
  const int num_tiles = weight.num_tiles();
  if (std::int64_t{weight.num_outputs()} * weight.num_inputs() * task.num_rows < kSerialProducts) {
    return run(0, task.num_rows, 0, num_tiles);
  }
  std::int64_t row_bytes = 1;
  for (const Inputs& x : inputs) row_bytes = std::max(row_bytes, x.row_bytes);
  const int most_rows = std::max<int>(24, kPanelBytes / row_bytes / 12 * 12);
  const int num_panels = (task.num_rows + most_rows - 1) / most_rows;
  // Tiles one by one would start a stream each: 3 % of a step.
  const TaskRuns runs(num_tiles, team_.num_threads(), /*short_tasks=*/4);
  team_.Run(num_panels * runs.num_runs, [&](int i) {
    const std::int64_t panel = i / runs.num_runs;
    run(static_cast<int>(task.num_rows * panel / num_panels),
        static_cast<int>(task.num_rows * (panel + 1) / num_panels), runs.begin(i % runs.num_runs),
        runs.end(i % runs.num_runs));
  });
}

void CpuOps::MatMul(ConstRows x, const PackedMatrix& weight, const float* bias, bool accumulate,
                    Rows y) {
  const auto* matrix = dynamic_cast<const CpuMatrix*>(&weight);
  FORERUN_CHECK(matrix != nullptr, "packed by another Ops");
  FORERUN_CHECK(x.rows == y.rows, "x and y differ in rows");
  FORERUN_CHECK(x.cols == weight.num_inputs(), "x does not fit the weight's inputs");
  FORERUN_CHECK(y.cols == weight.num_outputs(), "y does not fit the weight's outputs");
  if (x.rows == 0) return;
  InputsByForm inputs;
  for (const MatrixPart& part : matrix->parts()) {
    const InputForm form = FormOf(part.format);
    Inputs& made = inputs[static_cast<int>(form)];
    if (made.data == nullptr) made = InputsOf(x, form);
  }
  MatMulTask task;
  task.num_inputs = x.cols;
  task.num_rows = x.rows;
  task.bias = bias;
  task.accumulate = accumulate;
  task.y = y.data;
  task.y_stride = y.stride;
  RunProduct(*matrix, inputs, task);
}

void CpuOps::NormMatMul(ConstRows x, const NormWeight& norm, const PackedMatrix& weight,
                        const float* bias, Rows y) {
  const Rows normed = normed_.AsRows(x.rows, x.cols);
  RmsNorm(x, norm.weight, x.cols, norm.eps, normed);
  MatMul(normed, weight, bias, /*accumulate=*/false, y);
}

void CpuOps::GatedMatMul(ConstRows x, const NormWeight& norm, const GatedMlp& mlp, bool accumulate,
                         Rows y) {
  FORERUN_CHECK(x.rows == y.rows, "x and y differ in rows");
  const int num_gated = mlp.down.num_inputs();
  for (int begin = 0; begin < x.rows; begin += kMlpRows) {
    const int num_rows = std::min(kMlpRows, x.rows - begin);
    const Rows gate_up = gate_up_.AsRows(num_rows, 2 * num_gated);
    const Rows activated = activated_.AsRows(num_rows, num_gated);
    NormMatMul(x.Slice(begin, num_rows), norm, mlp.gate_up, mlp.gate_up_bias, gate_up);
    GatedActivation(gate_up, mlp.activation, activated);
    MatMul(activated, mlp.down, mlp.down_bias, accumulate, y.Slice(begin, num_rows));
  }
}

}  // namespace forerun
