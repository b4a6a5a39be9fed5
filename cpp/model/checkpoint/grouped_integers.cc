#include "cpp/model/checkpoint/grouped_integers.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "cpp/tensor/float16.h"
#include "forerun/error.h"

namespace forerun {
namespace {

constexpr int kPacked4 = 8;  // integers of 4 bits in an int32

std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Where AWQ has output k of each eight: kernels of GPUs unpack them in this order.
constexpr std::array<int, kPacked4> kAwqNibble = {0, 4, 1, 5, 2, 6, 3, 7};

bool IsFloat16(float value) {
  return std::isnan(value) || Float16ToFloat(FloatToFloat16TowardsZero(value)) == value;
}

// Whether kInt4Zero can have it as a scale.
bool IsWide(float value) { return (std::bit_cast<std::uint32_t>(value) & 0xff) == 0; }

int InputsPerScale(WeightFormat format) {
  const IntegerFormat integers = IntegersOf(format);
  return integers.block() != 0 ? integers.block() : integers.group;
}

float FloatAt(const TensorView& view, std::int64_t i) {
  if (view.dtype == DType::kFloat32) return static_cast<const float*>(view.data)[i];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(view.data)[i];
  return view.dtype == DType::kBFloat16 ? BFloat16ToFloat(bits) : Float16ToFloat(bits);
}

class GroupedIntegers final : public StoredIntegers {
 public:
  GroupedIntegers(const LinearQuantization& quantization, const GroupedTensors& tensors)
      : quantization_(quantization), tensors_(tensors) {
    ReadGroups();
    ReadScales();
    ReadZeros();
    ChooseFormat();
  }

  std::optional<WeightFormat> format() const override { return format_; }
  std::string obstacle() const override { return format_ ? "" : FindObstacle(); }

  void ReadIntegers(int row, const IntegerMatrix& matrix, int output) const override {
    const bool has_zeros = format_ == WeightFormat::kInt4Zero;
    std::int8_t* values = matrix.values(output);
    for (int i = 0; i < tensors_.num_inputs; ++i) {
      values[i] =
          static_cast<std::int8_t>(Integer(row, i) - (has_zeros ? 0 : Zero(row, GroupOf(i))));
    }
    for (int i = 0; i < matrix.view().num_scales(); ++i) {
      const int group = GroupOf(i * InputsPerScale(*format_));
      if (has_zeros) {
        matrix.wide_scales(output)[i] = Scale(row, group);
        matrix.zeros(output)[i] = static_cast<std::uint8_t>(Zero(row, group));
      } else {
        matrix.scales(output)[i] = FloatToFloat16TowardsZero(Scale(row, group));
      }
    }
  }

  void ReadFloats(int row, float* out) const override {
    for (int i = 0; i < tensors_.num_inputs; ++i) {
      const int group = GroupOf(i);
      out[i] = Scale(row, group) * static_cast<float>(Integer(row, i) - Zero(row, group));
    }
  }

 private:
  const std::uint32_t* words(const TensorView& view) const {
    return static_cast<const std::uint32_t*>(view.data);
  }

  // As stored, unsigned.
  int Integer(int output, int input) const {
    const std::int64_t outputs = tensors_.num_outputs;
    const TensorView& weights = tensors_.weights;
    switch (quantization_.layout) {
      case LinearLayout::kGptq:
        return words(weights)[input / kPacked4 * outputs + output] >> input % kPacked4 * 4 & 15;
      case LinearLayout::kAwq:
        return AwqNibble(words(weights) + input * (outputs / kPacked4), output);
      case LinearLayout::kPacked: {
        const int bits = quantization_.bits, per_word = 32 / bits;
        const std::int64_t row = output * CeilDiv(tensors_.num_inputs, per_word);
        return words(weights)[row + input / per_word] >> input % per_word * bits &
               ((1 << bits) - 1);
      }
      default:
        return static_cast<const std::int8_t*>(
                   weights.data)[std::int64_t{output} * tensors_.num_inputs + input] +
               128;
    }
  }

  static int AwqNibble(const std::uint32_t* row, int output) {
    return row[output / kPacked4] >> 4 * kAwqNibble[output % kPacked4] & 15;
  }

  int GroupOf(int input) const { return group_of_input_[input]; }
  float Scale(int output, int group) const { return scales_[Index(output, group)]; }
  int Zero(int output, int group) const {
    return zeros_.empty() ? middle() : zeros_[Index(output, group)];
  }
  // The zero point of symmetric weights.
  int middle() const { return 1 << (quantization_.bits - 1); }
  std::int64_t Index(int output, int group) const {
    return std::int64_t{output} * num_groups_ + group;
  }

  void ReadGroups() {
    const int size = quantization_.group_size, num_inputs = tensors_.num_inputs;
    num_groups_ = size == 0 ? 1 : static_cast<int>(CeilDiv(num_inputs, size));
    group_of_input_.resize(num_inputs);
    for (int i = 0; i < num_inputs; ++i) group_of_input_[i] = size == 0 ? 0 : i / size;
    if (tensors_.groups.data == nullptr) return;
    const auto* stored = static_cast<const std::int32_t*>(tensors_.groups.data);
    for (int i = 0; i < num_inputs; ++i) {
      if (stored[i] < 0 || stored[i] >= num_groups_) {
        throw CheckpointError(
            "tensor '" + tensors_.name + NamesOf(quantization_.layout).groups + "'",
            std::to_string(stored[i]) + " at " + std::to_string(i),
            "0 to " + std::to_string(num_groups_ - 1));
      }
      group_of_input_[i] = stored[i];
    }
  }

  // By outputs, in any order of the file.
  void ReadScales() {
    const bool is_turned =
        quantization_.layout == LinearLayout::kGptq || quantization_.layout == LinearLayout::kAwq;
    scales_.resize(std::int64_t{tensors_.num_outputs} * num_groups_);
    for (int output = 0; output < tensors_.num_outputs; ++output) {
      for (int group = 0; group < num_groups_; ++group) {
        std::int64_t index =
            is_turned ? std::int64_t{group} * tensors_.num_outputs + output : Index(output, group);
        if (quantization_.has_one_scale) index = 0;
        scales_[Index(output, group)] = FloatAt(tensors_.scales, index);
      }
    }
  }

  int StoredZero(int output, int group) const {
    const TensorView& zeros = tensors_.zeros;
    const std::int64_t words_per_group = tensors_.num_outputs / kPacked4;
    switch (quantization_.layout) {
      case LinearLayout::kGptq:
        return (words(zeros)[group * words_per_group + output / kPacked4] >> output % kPacked4 * 4 &
                15) +
               (quantization_.stores_zero_less_1 ? 1 : 0);
      case LinearLayout::kAwq:
        return AwqNibble(words(zeros) + group * words_per_group, output);
      default:
        return PackedZero(output, group);
    }
  }

  int PackedZero(int output, int group) const {
    const std::int64_t index = quantization_.has_one_scale ? 0 : Index(output, group);
    if (tensors_.zeros.dtype != DType::kInt32) {
      const int zero = static_cast<const std::int8_t*>(tensors_.zeros.data)[index];
      if (zero < -middle() || zero >= middle()) {
        throw CheckpointError(
            "tensor '" + tensors_.name + NamesOf(quantization_.layout).zeros + "'",
            std::to_string(zero) + " at " + std::to_string(index),
            std::to_string(-middle()) + " to " + std::to_string(middle() - 1));
      }
      return zero + middle();
    }
    const int bits = quantization_.bits, per_word = 32 / bits;
    return words(tensors_.zeros)[std::int64_t{output / per_word} * num_groups_ + group] >>
               output % per_word * bits &
           ((1 << bits) - 1);
  }

  void ReadZeros() {
    if (tensors_.zeros.data == nullptr) return;
    zeros_.resize(scales_.size());
    for (int output = 0; output < tensors_.num_outputs; ++output) {
      for (int group = 0; group < num_groups_; ++group) {
        zeros_[Index(output, group)] = static_cast<std::uint8_t>(StoredZero(output, group));
      }
    }
    if (!quantization_.is_symmetric) return;
    // Some writers of GPTQ's second version call it the first. The zero point of symmetric weights
    // is known, so either is understood.
    const bool is_first = quantization_.stores_zero_less_1;
    const int expected = zeros_[0] == middle() + 1 && is_first ? middle() + 1 : middle();
    for (std::uint8_t zero : zeros_) {
      if (zero != expected) {
        throw CheckpointError(
            "tensor '" + tensors_.name + NamesOf(quantization_.layout).zeros + "'",
            "a zero point of " + std::to_string(zero - (is_first ? 1 : 0)),
            std::to_string(expected - (is_first ? 1 : 0)) +
                ", as quantization_config says symmetric");
      }
    }
    zeros_.clear();
  }

  // Whether the format's scales can be these.
  bool Holds(WeightFormat format) const {
    const int size = InputsPerScale(format), num_inputs = tensors_.num_inputs;
    if (format == WeightFormat::kInt4Zero && num_inputs % size != 0) return false;
    for (int i = 0; i < num_inputs; ++i) {
      if (GroupOf(i) != GroupOf(i / size * size)) return false;
    }
    return std::all_of(scales_.begin(), scales_.end(),
                       format == WeightFormat::kInt4Zero ? IsWide : IsFloat16);
  }

  // The first that holds the integers and has the fewest bytes.
  void ChooseFormat() {
    std::vector<WeightFormat> formats;
    if (quantization_.bits == 4) {
      formats.push_back(WeightFormat::kInt4Zero);
      // Less its zero point, of 0 to 16, an integer of 4 bits is one of 5.
      formats.push_back(zeros_.empty() ? WeightFormat::kInt4 : WeightFormat::kInt5);
    } else if (zeros_.empty()) {
      formats.push_back(WeightFormat::kInt8);
    }
    for (WeightFormat format : formats) {
      if (!format_ && Holds(format)) format_ = format;
    }
  }

  std::string FindObstacle() const {
    const int size = quantization_.group_size;
    if (quantization_.bits == 8 && !zeros_.empty()) {
      return "8 bits with zero points, which symmetric quantization does not have";
    }
    if (size % kWeightGroup != 0) {
      return "group size " + std::to_string(size) + " is not a multiple of 32";
    }
    for (int i = 0; i < tensors_.num_inputs; ++i) {
      if (GroupOf(i) != GroupOf(i / kWeightGroup * kWeightGroup)) {
        return "inputs in any order, which desc_act=false or actorder 'static' avoids";
      }
    }
    return "scales that are no float16, which scale_dtype float16 or bfloat16 avoids";
  }

  const LinearQuantization quantization_;
  const GroupedTensors tensors_;
  int num_groups_ = 0;
  std::vector<int> group_of_input_;
  std::vector<float> scales_;        // [outputs, groups]
  std::vector<std::uint8_t> zeros_;  // likewise; empty: all are the middle
  std::optional<WeightFormat> format_;
};

}  // namespace

TensorNames NamesOf(LinearLayout layout) {
  switch (layout) {
    case LinearLayout::kGptq:
      return {"qweight", "scales", "qzeros", "g_idx"};
    case LinearLayout::kAwq:
      return {"qweight", "scales", "qzeros", ""};
    case LinearLayout::kPacked:
      return {"weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx"};
    case LinearLayout::kInt8:
      return {"weight", "weight_scale", "weight_zero_point", "weight_g_idx"};
    case LinearLayout::kFloats:
      break;
  }
  return {"", "", "", ""};
}

GroupedShapes ShapesOf(const LinearQuantization& quantization, const std::string& name,
                       int num_outputs, int num_inputs) {
  const std::int64_t outputs = num_outputs, inputs = num_inputs;
  const int size = quantization.group_size;
  const std::int64_t groups = size == 0 ? 1 : CeilDiv(inputs, size);
  const auto need = [&](std::int64_t extent, const char* what) {
    if (extent % kPacked4 == 0) return;
    throw CheckpointError("layer '" + name + "'", std::to_string(extent) + " " + what,
                          "a multiple of 8, which fill an int32");
  };
  switch (quantization.layout) {
    case LinearLayout::kGptq:
      need(inputs, "inputs");
      need(outputs, "outputs");
      return {{inputs / kPacked4, outputs}, {groups, outputs}, {groups, outputs / kPacked4}};
    case LinearLayout::kAwq:
      need(outputs, "outputs");
      return {{inputs, outputs / kPacked4}, {groups, outputs}, {groups, outputs / kPacked4}};
    default: {
      GroupedShapes shapes = {{outputs, inputs}, {outputs, groups}, {outputs, groups}};
      if (quantization.has_one_scale) shapes.scales = shapes.zeros = {1};
      if (quantization.layout == LinearLayout::kPacked) {
        const int per_word = 32 / quantization.bits;
        shapes.weights[1] = CeilDiv(inputs, per_word);
        if (!quantization.has_one_scale) shapes.zeros[0] = CeilDiv(outputs, per_word);
      }
      return shapes;
    }
  }
}

std::vector<std::int64_t> LayerShape(const LinearQuantization& quantization,
                                     const std::vector<std::int64_t>& stored) {
  if (stored.size() != 2) return {};
  switch (quantization.layout) {
    case LinearLayout::kGptq:
      return {stored[1], stored[0] * kPacked4};
    case LinearLayout::kAwq:
      return {stored[1] * kPacked4, stored[0]};
    case LinearLayout::kPacked:
      return {stored[0], stored[1] * (32 / quantization.bits)};
    default:
      return stored;
  }
}

std::unique_ptr<StoredIntegers> OpenGroupedIntegers(const LinearQuantization& quantization,
                                                    const GroupedTensors& tensors) {
  return std::make_unique<GroupedIntegers>(quantization, tensors);
}

}  // namespace forerun
