#include "cpp/model/tensor_values.h"

#include <algorithm>
#include <numeric>

#include "cpp/model/checkpoint/weight_reader.h"
#include "cpp/ops/cpu/cpu_backend.h"

namespace forerun {
namespace {

constexpr int kRowsAtOnce = 256;

void UnpackRows(const PackedMatrix& matrix, Ops& ops, float* out) {
  for (int begin = 0; begin < matrix.num_outputs(); begin += kRowsAtOnce) {
    std::vector<TokenId> rows(std::min(kRowsAtOnce, matrix.num_outputs() - begin));
    std::iota(rows.begin(), rows.end(), begin);
    const Rows to(out + std::int64_t{begin} * matrix.num_inputs(), static_cast<int>(rows.size()),
                  matrix.num_inputs());
    ops.Embed(ops.Begin({rows}), matrix, 1.0f, to);
  }
}

}  // namespace

TensorValues ReadTensorValues(const std::string& directory, const std::string& name) {
  Checkpoint checkpoint(directory);
  WeightReader reader(checkpoint);
  CpuBackend backend(/*num_threads=*/0);
  Ops& ops = backend.ops();
  TensorValues result;
  if (checkpoint.Contains(name) && checkpoint.ShapeOf(name).size() == 1) {
    result.shape = reader.ShapeOf(name, 1);
    const FloatVector vector = reader.TakeVector(name, static_cast<int>(result.shape[0]), ops);
    result.values.assign(vector.data(), vector.data() + vector.size());
    return result;
  }
  result.shape = reader.ShapeOf(name, 2);
  reader.CheckMatrix(name, result.shape);  // before there is memory for it
  const auto rows = static_cast<TokenId>(result.shape[0]);
  std::vector<TokenId> all(rows);
  std::iota(all.begin(), all.end(), 0);
  const auto matrix = reader.TakeRows(name, result.shape, all, DType::kFloat32, ops);
  result.values.resize(result.shape[0] * result.shape[1]);
  UnpackRows(*matrix, ops, result.values.data());
  return result;
}

}  // namespace forerun
