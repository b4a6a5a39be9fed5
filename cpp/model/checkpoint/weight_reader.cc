#include "cpp/model/checkpoint/weight_reader.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "cpp/model/checkpoint/grouped_integers.h"
#include "cpp/model/checkpoint/matrix_sources.h"
#include "forerun/error.h"

namespace forerun {
namespace {

constexpr std::int64_t kMaxTensorExtent = std::numeric_limits<std::int32_t>::max();

std::string Show(const Shape& shape) {
  std::string text = "[";
  for (std::int64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + "]";
}

// What a file says of its shapes becomes sizes of a model only through here.
Shape CheckExtents(const std::string& name, Shape shape) {
  for (std::int64_t extent : shape) {
    if (extent < 1 || extent > kMaxTensorExtent) {
      throw CheckpointError("tensor '" + name + "'", "shape " + Show(shape),
                            "extents of 1 to " + std::to_string(kMaxTensorExtent));
    }
  }
  return shape;
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

constexpr char kWeight[] = "weight";
constexpr char kShape[] = "weight_shape";  // of compressed-tensors

// "a.b." of "a.b.weight".
std::string LayerOf(const std::string& name) {
  return name.substr(0, name.size() - std::strlen(kWeight));
}

}  // namespace

WeightReader::WeightReader(Checkpoint& checkpoint, const Rename& rename)
    : checkpoint_(checkpoint),
      quantization_(ReadLinearQuantization(ReadOptionalConfig(checkpoint.directory()))) {
  for (const std::string& name : checkpoint.names()) {
    const auto [entry, is_new] = names_.emplace(rename ? rename(name) : name, name);
    if (!is_new) {
      throw CheckpointError("tensor '" + entry->first + "'",
                            "'" + entry->second + "' and '" + name + "'", "one of them");
    }
  }
}

std::string WeightReader::QuantizedName(const std::string& name) const {
  if (quantization_.layout == LinearLayout::kFloats || !name.ends_with(kWeight)) return "";
  const std::string stored = LayerOf(name) + NamesOf(quantization_.layout).weights;
  return Has(stored) ? stored : "";
}

Shape WeightReader::ShapeOf(const std::string& name, std::size_t num_dimensions) {
  if (const std::string stored = QuantizedName(name); !stored.empty() && !Has(name)) {
    if (const std::string shape = LayerOf(name) + kShape; Has(shape)) {
      return TakeIntegers(shape, 2, 1, kMaxTensorExtent);
    }
    return CheckExtents(name, LayerShape(quantization_, ShapeOf(stored, 2)));
  }
  if (!Has(name)) {
    throw CheckpointError("tensor '" + name + "'", "nothing",
                          "a tensor of " + std::to_string(num_dimensions) + " dimensions");
  }
  Shape shape = checkpoint_.ShapeOf(names_.at(name));
  if (shape.size() != num_dimensions) {
    throw CheckpointError("tensor '" + name + "'", "shape " + Show(shape),
                          std::to_string(num_dimensions) + " dimensions");
  }
  return CheckExtents(name, std::move(shape));
}

std::vector<WeightReader::StoredMatrix> WeightReader::FindMatrices() {
  const TensorNames parts = NamesOf(quantization_.layout);
  std::set<std::string> weights, others;
  for (const auto& [name, original] : names_) {
    if (!*parts.weights || !name.ends_with(std::string(".") + parts.weights)) continue;
    if (IsFloat(checkpoint_.DTypeOf(original))) continue;  // a layer that is not quantized
    const std::string layer = name.substr(0, name.size() - std::strlen(parts.weights));
    weights.insert(layer + kWeight);
    for (const char* part : {parts.weights, parts.scales, parts.zeros, parts.groups, kShape}) {
      others.insert(layer + part);
    }
  }
  for (const auto& [name, original] : names_) {
    if (!others.count(name) && checkpoint_.ShapeOf(original).size() == 2) weights.insert(name);
  }
  std::vector<StoredMatrix> matrices;
  for (const std::string& name : weights) {
    const Shape shape = ShapeOf(name, 2);
    const auto integers = FindIntegers(name, shape);
    matrices.push_back({name, static_cast<int>(shape[0]), static_cast<int>(shape[1]),
                        integers ? integers->format() : std::nullopt});
    DropMatrix(name);
  }
  return matrices;
}

TensorView WeightReader::Find(const std::string& name, const Shape& shape) {
  if (!Has(name)) {
    throw CheckpointError("tensor '" + name + "'", "nothing",
                          "shape " + Show(shape) + ", as config.json says");
  }
  const Shape& stored = checkpoint_.ShapeOf(names_.at(name));
  if (stored != shape) {
    throw CheckpointError("tensor '" + name + "'", "shape " + Show(stored),
                          Show(shape) + ", as config.json says");
  }
  used_.insert(name);
  return checkpoint_.Get(names_.at(name));
}

TensorView WeightReader::Take(const std::string& name, const Shape& shape) {
  const TensorView view = Find(name, shape);
  const BlockType* blocks = BlocksOf(name);
  if (blocks != nullptr || !IsFloat(view.dtype)) {
    throw CheckpointError("tensor '" + name + "'", blocks ? blocks->name : Name(view.dtype),
                          "float32, bfloat16 or float16");
  }
  return view;
}

bool WeightReader::AreEqual(const std::string& a, const std::string& b, const Shape& shape) {
  const TensorView first = Find(a, shape), second = Find(b, shape);
  return BlocksOf(a) == BlocksOf(b) && first.dtype == second.dtype &&
         std::memcmp(first.data, second.data, first.num_elements() * SizeOf(first.dtype)) == 0;
}

TensorView WeightReader::FindTyped(const std::string& name, const Shape& shape,
                                   std::initializer_list<DType> dtypes) {
  const TensorView view = Find(name, shape);
  if (std::ranges::find(dtypes, view.dtype) == dtypes.end()) {
    std::string expected;
    for (DType dtype : dtypes)
      expected += (expected.empty() ? "" : " or ") + std::string(Name(dtype));
    throw CheckpointError("tensor '" + name + "'", Name(view.dtype), expected);
  }
  return view;
}

std::unique_ptr<StoredIntegers> WeightReader::OpenLayer(const std::string& layer,
                                                        const Shape& shape) {
  GroupedTensors tensors;
  tensors.name = layer;
  tensors.num_outputs = static_cast<int>(shape[0]);
  tensors.num_inputs = static_cast<int>(shape[1]);
  const TensorNames names = NamesOf(quantization_.layout);
  const GroupedShapes shapes =
      ShapesOf(quantization_, layer, tensors.num_outputs, tensors.num_inputs);
  const bool has_bytes = quantization_.layout == LinearLayout::kInt8;
  tensors.weights =
      FindTyped(layer + names.weights, shapes.weights, {has_bytes ? DType::kInt8 : DType::kInt32});
  tensors.scales = FindTyped(layer + names.scales, shapes.scales,
                             {DType::kFloat16, DType::kBFloat16, DType::kFloat32});
  const std::string zeros = layer + names.zeros;
  if (!quantization_.is_symmetric || Has(zeros)) {
    const bool are_bytes = has_bytes || quantization_.has_one_scale ||
                           (Has(zeros) && checkpoint_.DTypeOf(names_.at(zeros)) == DType::kInt8);
    tensors.zeros = are_bytes ? FindTyped(zeros, shapes.scales, {DType::kInt8})
                              : FindTyped(zeros, shapes.zeros, {DType::kInt32});
  }
  const std::string groups = layer + names.groups;
  if (*names.groups != '\0' && Has(groups)) {
    tensors.groups = FindTyped(groups, {shape[1]}, {DType::kInt32});
  } else if (quantization_.has_any_order && quantization_.group_size != 0) {
    throw CheckpointError("tensor '" + groups + "'", "nothing",
                          "the group of each input, which quantization_config says are in any "
                          "order (desc_act, actorder)");
  }
  if (const std::string stored_shape = layer + kShape; Has(stored_shape)) {
    const std::vector<std::int64_t> extents = TakeIntegers(stored_shape, 2, 0, kMaxTensorExtent);
    if (extents != shape) {
      throw CheckpointError("tensor '" + stored_shape + "'", Show(extents),
                            Show(shape) + ", as config.json says");
    }
  }
  return OpenGroupedIntegers(quantization_, tensors);
}

std::unique_ptr<StoredIntegers> WeightReader::FindIntegers(const std::string& name,
                                                           const Shape& shape) {
  if (Has(name)) {
    if (const BlockType* blocks = BlocksOf(name)) {
      const auto* rows = static_cast<const std::byte*>(Find(name, shape).data);
      return OpenBlocks(*blocks, rows, static_cast<int>(shape[1]));
    }
    const bool has_bytes = checkpoint_.DTypeOf(names_.at(name)) == DType::kInt8;
    if (quantization_.layout != LinearLayout::kInt8 || !has_bytes) return nullptr;
  }
  return QuantizedName(name).empty() ? nullptr : OpenLayer(LayerOf(name), shape);
}

void WeightReader::DropMatrix(const std::string& name) {
  const std::string layer = LayerOf(name);
  const TensorNames names = NamesOf(quantization_.layout);
  for (const char* part : {kWeight, names.weights, names.scales, names.zeros, names.groups}) {
    if (Has(layer + part)) Drop(layer + part);
  }
}

std::unique_ptr<PackedMatrix> WeightReader::TakeMatrix(std::initializer_list<Part> parts,
                                                       int num_inputs, const MatrixFormat& format,
                                                       Ops& ops) {
  MatrixSources sources(num_inputs, format.format, format.keep_integers, ops);
  std::vector<std::unique_ptr<StoredIntegers>> stored;
  for (const Part& part : parts) {
    const Shape shape = {part.num_outputs, num_inputs};
    if (auto integers = FindIntegers(part.name + ".weight", shape)) {
      std::vector<TokenId> rows(part.num_outputs);
      std::iota(rows.begin(), rows.end(), 0);
      if (sources.Add(*integers, std::move(rows))) ++unpacked_[integers->obstacle()];
      stored.push_back(std::move(integers));
    } else {
      sources.Add(Take(part.name + ".weight", shape));
    }
  }
  std::unique_ptr<PackedMatrix> matrix = sources.Pack();
  for (const Part& part : parts) DropMatrix(part.name + ".weight");
  return matrix;
}

void WeightReader::CheckMatrix(const std::string& name, const Shape& shape) {
  if (FindIntegers(name, shape) == nullptr) Take(name, shape);
}

std::unique_ptr<PackedMatrix> WeightReader::TakeRows(const std::string& name, const Shape& shape,
                                                     std::span<const TokenId> rows,
                                                     const MatrixFormat& format, Ops& ops) {
  MatrixSources sources(static_cast<int>(shape[1]), format.format, format.keep_integers, ops);
  if (const auto integers = FindIntegers(name, shape)) {
    sources.Add(*integers, {rows.begin(), rows.end()});
    return sources.Pack();
  }
  const TensorView matrix = Take(name, shape);
  const std::size_t row_bytes = SizeOf(matrix.dtype) * shape[1];
  AlignedBuffer gathered(HostMemory(), rows.size() * row_bytes);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(gathered.as<std::byte>() + i * row_bytes,
                static_cast<const std::byte*>(matrix.data) + rows[i] * row_bytes, row_bytes);
  }
  sources.Add(
      {gathered.as<std::byte>(), matrix.dtype, {static_cast<std::int64_t>(rows.size()), shape[1]}});
  return sources.Pack();
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

bool WeightReader::IsEmptyBias(const std::string& name) const {
  if (quantization_.layout != LinearLayout::kGptq || !name.ends_with(".bias")) return false;
  const TensorView view = checkpoint_.Get(names_.at(name));
  if (!IsFloat(view.dtype)) return false;
  std::vector<float> values;
  AppendFloats(view, 0.0f, values);
  return std::ranges::all_of(values, [](float value) { return value == 0.0f; });
}

void WeightReader::CheckLeftovers(const std::function<bool(const std::string& name)>& is_harmless,
                                  const std::string& expected) const {
  for (const auto& [name, original] : names_) {
    if (used_.count(name) == 0 && !is_harmless(name) && !IsEmptyBias(name)) {
      throw CheckpointError("tensor '" + original + "'", "present", expected);
    }
  }
}

}  // namespace forerun
