#include <algorithm>

#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// Weights that one thread multiplies sooner than another would join.
constexpr std::int64_t kSerialProducts = 16384;
// Activations that stay in a second-level cache beside a weight tile.
constexpr std::int64_t kPanelBytes = 192 * 1024;

// Splits tiles into runs: a long one for every thread first, so that it streams, then single tiles
// that even out the ends.
struct TileRuns {
  TileRuns(int num_tiles_, int num_threads)
      : num_tiles(num_tiles_),
        num_long(num_threads),
        long_tiles(num_tiles_ * 3 / 4 / num_threads / 4 * 4),
        num_runs(num_long + num_tiles_ - num_long * long_tiles) {
    if (long_tiles == 0) {
      num_long = 0;
      num_runs = num_tiles;
    }
  }

  int begin(int run) const {
    return run < num_long ? run * long_tiles : num_long * long_tiles + run - num_long;
  }
  int end(int run) const { return begin(run) + (run < num_long ? long_tiles : 1); }

  int num_tiles, num_long, long_tiles, num_runs;
};

// Elements of a row that is prepared for bfloat16 and for integer weights.
std::int64_t RoundedStride(int cols) { return (cols + 1) / 2 * 2; }
std::int64_t QuantizedStride(int cols) {
  return std::int64_t{kGroupsPerStep} * NumSteps(WeightFormat::kInt8, cols);
}

}  // namespace

std::int64_t CpuOps::PreparedRowBytes(int cols) {
  return std::max<std::int64_t>(RoundedStride(cols) * sizeof(std::uint16_t),
                                QuantizedStride(cols) * sizeof(QuantizedGroup));
}

void CpuOps::RoundActivations(ConstRows x, MatMulTask& task) {
  prepared_.Grow(x.rows * PreparedRowBytes(x.cols));
  const std::int64_t stride = RoundedStride(x.cols);
  auto* rounded = prepared_.as<std::uint16_t>();
  ForRows(x.rows, x.cols,
          [&](int row) { kernels_.round_row(x.row(row), x.cols, rounded + row * stride); });
  task.x = rounded;
  task.x_stride = stride;
}

void CpuOps::QuantizeActivations(ConstRows x, MatMulTask& task) {
  prepared_.Grow(x.rows * PreparedRowBytes(x.cols));
  const std::int64_t stride = QuantizedStride(x.cols);
  auto* groups = prepared_.as<QuantizedGroup>();
  ForRows(x.rows, x.cols, [&](int row) {
    integer_kernels_.quantize_row(x.row(row), x.cols, groups + row * stride);
  });
  task.x = groups;
  task.x_stride = stride;
}

CpuOps::Product CpuOps::ProductOf(WeightFormat format) const {
  switch (format) {
    case WeightFormat::kFloat32:
      return {kernels_.matmul_float32, sizeof(float)};
    case WeightFormat::kBFloat16:
      return {kernels_.matmul_bfloat16, kernels_.round_row != nullptr ? 2 : 4};
    case WeightFormat::kInt8:
      return {integer_kernels_.matmul_int8, sizeof(QuantizedGroup)};
    case WeightFormat::kInt4:
      return {integer_kernels_.matmul_int4, sizeof(QuantizedGroup)};
    case WeightFormat::kInt4Min:
      return {integer_kernels_.matmul_int4_min, sizeof(QuantizedGroup)};
    case WeightFormat::kInt5:
      return {integer_kernels_.matmul_int5, sizeof(QuantizedGroup)};
    case WeightFormat::kInt5Min:
      return {integer_kernels_.matmul_int5_min, sizeof(QuantizedGroup)};
  }
  return {};
}

void CpuOps::RunProduct(const CpuMatrix& weight, const MatMulTask& task) {
  const auto [multiply, input_bytes] = ProductOf(weight.format());
  const std::int64_t row_bytes = task.x_stride * input_bytes;
  const auto run = [&, multiply = multiply](int row_begin, int row_end, int tile_begin,
                                            int tile_end) {
    MatMulTask part = task;
    part.x = static_cast<const std::byte*>(task.x) + row_begin * row_bytes;
    part.y = task.y + row_begin * task.y_stride;
    part.num_rows = row_end - row_begin;
    part.tile_begin = tile_begin;
    part.tile_end = tile_end;
    multiply(part);
  };
  const int num_tiles = weight.num_tiles();
  if (std::int64_t{weight.num_outputs()} * weight.num_inputs() * task.num_rows < kSerialProducts) {
    return run(0, task.num_rows, 0, num_tiles);
  }
  const int most_rows = std::max<int>(24, kPanelBytes / row_bytes / 12 * 12);
  const int num_panels = (task.num_rows + most_rows - 1) / most_rows;
  const TileRuns runs(num_tiles, team_.num_threads());
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
  MatMulTask task;
  task.weights = matrix->tile(0);
  task.num_inputs = x.cols;
  task.num_outputs = y.cols;
  task.x = x.data;
  task.x_stride = x.stride;
  task.num_rows = x.rows;
  task.bias = bias;
  task.accumulate = accumulate;
  task.y = y.data;
  task.y_stride = y.stride;
  if (matrix->format() == WeightFormat::kBFloat16 && kernels_.round_row != nullptr) {
    RoundActivations(x, task);
  } else if (HasIntegers(matrix->format())) {
    QuantizeActivations(x, task);
  }
  RunProduct(*matrix, task);
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
