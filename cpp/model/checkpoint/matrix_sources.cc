#include "cpp/model/checkpoint/matrix_sources.h"

#include <utility>

namespace forerun {

void MatrixSources::Add(const StoredIntegers& stored, std::span<const TokenId> rows) {
  const int num_rows = static_cast<int>(rows.size());
  Part part;
  if (keeps_integers_ && stored.format()) {
    part.integers = std::make_unique<IntegerMatrix>(*stored.format(), num_rows, num_inputs_);
    for (int i = 0; i < num_rows; ++i) stored.ReadIntegers(rows[i], *part.integers, i);
  } else {
    part.memory = AlignedBuffer(HostMemory(), sizeof(float) * num_inputs_ * num_rows);
    auto* floats = part.memory.as<float>();
    for (int i = 0; i < num_rows; ++i) {
      stored.ReadFloats(rows[i], floats + std::int64_t{i} * num_inputs_);
    }
    part.floats = {floats, DType::kFloat32, {num_rows, num_inputs_}};
  }
  parts_.push_back(std::move(part));
}

bool MatrixSources::AreIntegers() const {
  for (const Part& part : parts_) {
    if (part.integers == nullptr ||
        part.integers->view().format != parts_.front().integers->view().format) {
      return false;
    }
  }
  return true;
}

void MatrixSources::Dequantize(Part& part) const {
  const IntegerView& view = part.integers->view();
  part.memory = AlignedBuffer(HostMemory(), sizeof(float) * num_inputs_ * view.num_outputs);
  auto* floats = part.memory.as<float>();
  for (int i = 0; i < view.num_outputs; ++i) {
    forerun::Dequantize(view, i, floats + std::int64_t{i} * num_inputs_);
  }
  part.floats = {floats, DType::kFloat32, {view.num_outputs, num_inputs_}};
  part.integers.reset();
}

std::unique_ptr<PackedMatrix> MatrixSources::Pack(Ops& ops) {
  if (AreIntegers()) {
    std::vector<WeightSource> sources;
    for (const Part& part : parts_) sources.emplace_back(part.integers->view());
    return ops.Pack(sources);
  }
  std::vector<TensorView> views;
  for (Part& part : parts_) {
    if (part.integers != nullptr) Dequantize(part);
    views.push_back(part.floats);
  }
  return ops.Pack(views, of_floats_);
}

}  // namespace forerun
