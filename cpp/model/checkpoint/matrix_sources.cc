#include "cpp/model/checkpoint/matrix_sources.h"

namespace forerun {

bool MatrixSources::Add(const StoredIntegers& stored, std::span<const TokenId> rows) {
  const int num_rows = static_cast<int>(rows.size());
  if (keeps_integers_ && stored.format()) {
    const IntegerMatrix& matrix = integers_.emplace_back(*stored.format(), num_rows, num_inputs_);
    ops_.ForEach(num_rows, [&](int i) { stored.ReadIntegers(rows[i], matrix, i); });
    sources_.emplace_back(matrix.view());
    return false;
  }
  auto* floats =
      floats_.emplace_back(HostMemory(), sizeof(float) * num_inputs_ * num_rows).as<float>();
  ops_.ForEach(num_rows,
               [&](int i) { stored.ReadFloats(rows[i], floats + std::int64_t{i} * num_inputs_); });
  Add(TensorView{floats, DType::kFloat32, {num_rows, num_inputs_}});
  return keeps_integers_;
}

}  // namespace forerun
