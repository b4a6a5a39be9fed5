#include "cpp/model/checkpoint/matrix_sources.h"

#include <utility>

namespace forerun {

bool MatrixSources::Add(const StoredIntegers& stored, std::vector<TokenId> rows) {
  added_.push_back({{}, &stored, std::move(rows)});
  return keeps_integers_ && !stored.format();
}

std::unique_ptr<PackedMatrix> MatrixSources::Pack() {
  if (auto restored = ops_.Restore(Shapes(), num_inputs_)) return restored;
  for (const Added& added : added_) Read(added);
  return ops_.Pack(sources_);
}

std::optional<WeightFormat> MatrixSources::KeptFormat(const Added& added) const {
  return keeps_integers_ && added.stored != nullptr ? added.stored->format() : std::nullopt;
}

std::vector<PartShape> MatrixSources::Shapes() const {
  std::vector<PartShape> shapes;
  for (const Added& added : added_) {
    const bool is_stored = added.stored != nullptr;
    const auto num_outputs = is_stored ? std::ssize(added.rows) : added.floats.shape[0];
    AddPart({KeptFormat(added).value_or(of_floats_), static_cast<int>(num_outputs)}, shapes);
  }
  return shapes;
}

void MatrixSources::Read(const Added& added) {
  if (added.stored == nullptr) {
    sources_.emplace_back(added.floats, of_floats_);
    return;
  }
  const int num_rows = static_cast<int>(added.rows.size());
  if (const auto format = KeptFormat(added)) {
    const IntegerMatrix& matrix = integers_.emplace_back(*format, num_rows, num_inputs_);
    ops_.ForEach(num_rows, [&](int i) { added.stored->ReadIntegers(added.rows[i], matrix, i); });
    sources_.emplace_back(matrix.view());
    return;
  }
  auto* floats =
      floats_.emplace_back(HostMemory(), sizeof(float) * num_inputs_ * num_rows).as<float>();
  ops_.ForEach(num_rows, [&](int i) {
    added.stored->ReadFloats(added.rows[i], floats + std::int64_t{i} * num_inputs_);
  });
  sources_.emplace_back(TensorView{floats, DType::kFloat32, {num_rows, num_inputs_}}, of_floats_);
}

}  // namespace forerun
