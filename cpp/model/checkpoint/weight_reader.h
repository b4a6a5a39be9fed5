// Tensors of a checkpoint, checked and packed.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_WEIGHT_READER_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_WEIGHT_READER_H_

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cpp/model/checkpoint/quantization_config.h"
#include "cpp/model/checkpoint/safetensors.h"
#include "cpp/model/checkpoint/stored_integers.h"
#include "cpp/ops/ops.h"
#include "forerun/types.h"

namespace forerun {

using Shape = std::vector<std::int64_t>;

// How a matrix is packed.
struct MatrixFormat {
  MatrixFormat(WeightFormat packed, bool keeps_integers)
      : format(packed), keep_integers(keeps_integers) {}
  MatrixFormat(DType dtype) : MatrixFormat(FormatOf(dtype), true) {}  // NOLINT: implicit

  WeightFormat format;  // of floats
  bool keep_integers;   // those of a quantized checkpoint, in their own format
};

// Throws CheckpointError that names the first tensor that is missing, of another shape than
// expected, or of no float type.
class WeightReader {
 public:
  // Part of a stacked matrix: `num_outputs` rows from a linear layer of this name.
  struct Part {
    std::string name;
    std::int64_t num_outputs;
  };
  // A matrix of the checkpoint by the name of its weight, which a quantized layer has not.
  struct StoredMatrix {
    std::string name;
    int num_outputs = 0;
    int num_inputs = 0;
    std::optional<WeightFormat> format;  // of its integers, if one holds them exactly
  };
  using Rename = std::function<std::string(const std::string& name)>;

  // Below, names are those that `rename` makes of the checkpoint's.
  explicit WeightReader(Checkpoint& checkpoint, const Rename& rename = {});

  bool Has(const std::string& name) const { return names_.count(name) != 0; }
  const std::map<std::string, std::string>& names() const { return names_; }
  // Throws for a tensor that is not there, not of so many dimensions, or empty; each extent fits an
  // int. Of the weight of a quantized layer: [outputs, inputs].
  Shape ShapeOf(const std::string& name, std::size_t num_dimensions);

  // All of them, in no particular order. Scales are read for it, weights are not.
  std::vector<StoredMatrix> FindMatrices();

  // Whether two matrices are stored as the same bytes of the same type. Counts as taking them.
  bool AreEqual(const std::string& a, const std::string& b, const Shape& shape);
  // What is taken counts as used. Floats.
  TensorView Take(const std::string& name, const Shape& shape);
  std::unique_ptr<PackedMatrix> TakeMatrix(std::initializer_list<Part> parts, int num_inputs,
                                           const MatrixFormat& format, Ops& ops);
  // How many parts of those became floats because no format holds their integers, by the reason.
  const std::map<std::string, int>& unpacked() const { return unpacked_; }
  // Throws unless there is a matrix [outputs, inputs] of this shape, which a file only claims.
  void CheckMatrix(const std::string& name, const Shape& shape);
  // Some rows of a matrix [outputs, inputs], in any order.
  std::unique_ptr<PackedMatrix> TakeRows(const std::string& name, const Shape& shape,
                                         std::span<const TokenId> rows, const MatrixFormat& format,
                                         Ops& ops);
  // The parts' biases, concatenated.
  FloatVector TakeBias(std::initializer_list<Part> parts, Ops& ops);
  FloatVector TakeVector(const std::string& name, int size, Ops& ops, float offset = 0.0f);
  // Of an integer type. Throws for values outside [least, most].
  std::vector<std::int64_t> TakeIntegers(const std::string& name, int size, std::int64_t least,
                                         std::int64_t most);
  void Ignore(const std::string& name) { used_.insert(name); }
  void Drop(const std::string& name) { checkpoint_.Drop(names_.at(name)); }

  // Throws unless every tensor was used or is harmless.
  void CheckLeftovers(const std::function<bool(const std::string& name)>& is_harmless,
                      const std::string& expected) const;

 private:
  TensorView Find(const std::string& name, const Shape& shape);
  const BlockType* BlocksOf(const std::string& name) const {
    return checkpoint_.BlocksOf(names_.at(name));
  }
  // The name of what is stored instead of a quantized layer's "layer.weight"; empty: nothing.
  std::string QuantizedName(const std::string& name) const;
  // Null: the matrix is stored as floats, or not at all.
  std::unique_ptr<StoredIntegers> FindIntegers(const std::string& name, const Shape& shape);
  // As quantization_config says. `layer` ends with a dot.
  std::unique_ptr<StoredIntegers> OpenLayer(const std::string& layer, const Shape& shape);
  TensorView FindTyped(const std::string& name, const Shape& shape,
                       std::initializer_list<DType> dtypes);
  void DropMatrix(const std::string& name);
  // GPTQ's writers give every layer a bias, of zeros where the model has none.
  bool IsEmptyBias(const std::string& name) const;

  Checkpoint& checkpoint_;
  LinearQuantization quantization_;
  std::map<std::string, std::string> names_;  // the checkpoint's
  std::set<std::string> used_;
  std::map<std::string, int> unpacked_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_WEIGHT_READER_H_
