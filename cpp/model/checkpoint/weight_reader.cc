#include "cpp/model/checkpoint/weight_reader.h"

#include <cstddef>
#include <cstring>
#include <utility>

#include "forerun/error.h"

namespace forerun {
namespace {

std::string Show(const Shape& shape) {
  std::string text = "[";
  for (std::int64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + "]";
}

bool IsFloat(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

void AppendFloats(const TensorView& view, float offset, std::vector<float>& out) {
  const std::int64_t count = view.num_elements();
  for (std::int64_t i = 0; i < count; ++i) {
    float value = 0.0f;
    if (view.dtype == DType::kFloat32) {
      value = static_cast<const float*>(view.data)[i];
    } else {
      const std::uint16_t bits = static_cast<const std::uint16_t*>(view.data)[i];
      value = view.dtype == DType::kBFloat16 ? BFloat16ToFloat(bits) : Float16ToFloat(bits);
    }
    out.push_back(value + offset);
  }
}

}  // namespace

WeightReader::WeightReader(Checkpoint& checkpoint, const Rename& rename) : checkpoint_(checkpoint) {
  for (const std::string& name : checkpoint.names()) {
    const auto [entry, is_new] = names_.emplace(rename ? rename(name) : name, name);
    if (!is_new) {
      throw CheckpointError("tensor '" + entry->first + "'",
                            "'" + entry->second + "' and '" + name + "'", "one of them");
    }
  }
}

Shape WeightReader::ShapeOf(const std::string& name, std::size_t num_dimensions) {
  if (!Has(name)) {
    throw CheckpointError("tensor '" + name + "'", "nothing",
                          "a tensor of " + std::to_string(num_dimensions) + " dimensions");
  }
  Shape shape = checkpoint_.Get(names_.at(name)).shape;
  if (shape.size() != num_dimensions) {
    throw CheckpointError("tensor '" + name + "'", "shape " + Show(shape),
                          std::to_string(num_dimensions) + " dimensions");
  }
  return shape;
}

TensorView WeightReader::Find(const std::string& name, const Shape& shape) {
  if (!Has(name)) {
    throw CheckpointError("tensor '" + name + "'", "nothing",
                          "shape " + Show(shape) + ", as config.json says");
  }
  const TensorView view = checkpoint_.Get(names_.at(name));
  if (view.shape != shape) {
    throw CheckpointError("tensor '" + name + "'", "shape " + Show(view.shape),
                          Show(shape) + ", as config.json says");
  }
  used_.insert(name);
  return view;
}

TensorView WeightReader::Take(const std::string& name, const Shape& shape) {
  const TensorView view = Find(name, shape);
  if (!IsFloat(view.dtype)) {
    throw CheckpointError("tensor '" + name + "'", Name(view.dtype),
                          "float32, bfloat16 or float16");
  }
  return view;
}

std::unique_ptr<PackedMatrix> WeightReader::TakeMatrix(std::initializer_list<Part> parts,
                                                       int num_inputs, DType dtype, Ops& ops) {
  std::vector<TensorView> views;
  for (const Part& part : parts) {
    views.push_back(Take(part.name + ".weight", {part.num_outputs, num_inputs}));
  }
  std::unique_ptr<PackedMatrix> matrix = ops.Pack(views, FormatOf(dtype));
  for (const Part& part : parts) Drop(part.name + ".weight");
  return matrix;
}

std::unique_ptr<PackedMatrix> WeightReader::TakeRows(const std::string& name, const Shape& shape,
                                                     std::span<const TokenId> rows, DType dtype,
                                                     Ops& ops) {
  const TensorView matrix = Take(name, shape);
  const std::size_t row_bytes = SizeOf(matrix.dtype) * shape[1];
  AlignedBuffer gathered(HostMemory(), rows.size() * row_bytes);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(gathered.as<std::byte>() + i * row_bytes,
                static_cast<const std::byte*>(matrix.data) + rows[i] * row_bytes, row_bytes);
  }
  const TensorView view = {
      gathered.as<std::byte>(), matrix.dtype, {static_cast<std::int64_t>(rows.size()), shape[1]}};
  return ops.Pack({&view, 1}, FormatOf(dtype));
}

FloatVector WeightReader::TakeBias(std::initializer_list<Part> parts, Ops& ops) {
  std::vector<float> bias;
  for (const Part& part : parts) {
    AppendFloats(Take(part.name + ".bias", {part.num_outputs}), 0.0f, bias);
  }
  return {ops.memory(), bias};
}

FloatVector WeightReader::TakeVector(const std::string& name, int size, Ops& ops, float offset) {
  std::vector<float> values;
  AppendFloats(Take(name, {size}), offset, values);
  return {ops.memory(), values};
}

std::vector<std::int64_t> WeightReader::TakeIntegers(const std::string& name, int size,
                                                     std::int64_t least, std::int64_t most) {
  const TensorView view = Find(name, {size});
  if (view.dtype != DType::kInt64 && view.dtype != DType::kInt32) {
    throw CheckpointError("tensor '" + name + "'", Name(view.dtype), "int64 or int32");
  }
  std::vector<std::int64_t> values(size);
  for (int i = 0; i < size; ++i) {
    values[i] = view.dtype == DType::kInt64 ? static_cast<const std::int64_t*>(view.data)[i]
                                            : static_cast<const std::int32_t*>(view.data)[i];
    if (values[i] < least || values[i] > most) {
      throw CheckpointError("tensor '" + name + "'",
                            std::to_string(values[i]) + " at " + std::to_string(i),
                            std::to_string(least) + " to " + std::to_string(most));
    }
  }
  return values;
}

void WeightReader::CheckLeftovers(const std::function<bool(const std::string& name)>& is_harmless,
                                  const std::string& expected) const {
  for (const auto& [name, original] : names_) {
    if (used_.count(name) == 0 && !is_harmless(name)) {
      throw CheckpointError("tensor '" + original + "'", "present", expected);
    }
  }
}

}  // namespace forerun
