#include "cpp/model/checkpoint/gguf_blocks.h"

#include <array>
#include <cstring>

namespace forerun {
namespace {

constexpr int kHalf = kWeightGroup / 2;

constexpr std::array<BlockType, 5> kTypes = {{{"Q8_0", WeightFormat::kInt8, 32, 34},
                                              {"Q4_0", WeightFormat::kInt4, 32, 18},
                                              {"Q4_1", WeightFormat::kInt4Min, 32, 20},
                                              {"Q5_0", WeightFormat::kInt5, 32, 22},
                                              {"Q5_1", WeightFormat::kInt5Min, 32, 24}}};

// Takes the fields of a block one after the other.
class BlockCursor {
 public:
  explicit BlockCursor(const std::byte* block) : data_(block) {}

  template <typename T>
  T Take() {
    T value;
    std::memcpy(&value, Skip(sizeof(T)), sizeof(T));
    return value;
  }
  const std::uint8_t* Skip(int num_bytes) {
    const auto* begin = reinterpret_cast<const std::uint8_t*>(data_);
    data_ += num_bytes;
    return begin;
  }

 private:
  const std::byte* data_;
};

// The first half of the weights is in the low four bits.
void ReadNibbles(const std::uint8_t* nibbles, int zero, std::int8_t* out) {
  for (int i = 0; i < kHalf; ++i) {
    out[i] = static_cast<std::int8_t>((nibbles[i] & 0x0f) - zero);
    out[i + kHalf] = static_cast<std::int8_t>((nibbles[i] >> 4) - zero);
  }
}

// What a block of 32 weights has, in this order: scale, minimum, fifth bits, weights.
void ReadGroup(BlockCursor block, IntegerFormat format, std::int8_t* values, std::uint16_t* scale,
               std::uint16_t* minimum) {
  *scale = block.Take<std::uint16_t>();
  if (format.has_minimum()) *minimum = block.Take<std::uint16_t>();
  if (format.bits == 8) {
    std::memcpy(values, block.Skip(kWeightGroup), kWeightGroup);
    return;
  }
  const std::uint32_t fifth_bits = format.bits == 5 ? block.Take<std::uint32_t>() : 0;
  ReadNibbles(block.Skip(kHalf), format.zero, values);
  for (int i = 0; i < kWeightGroup; ++i) {
    values[i] = static_cast<std::int8_t>(values[i] + (fifth_bits >> i & 1) * 16);
  }
}

class Blocks final : public StoredIntegers {
 public:
  Blocks(const BlockType& type, const std::byte* rows, int num_inputs)
      : type_(type), rows_(rows), num_inputs_(num_inputs) {}

  std::optional<WeightFormat> format() const override { return type_.format; }

  void ReadIntegers(int row, const IntegerMatrix& matrix, int output) const override {
    const IntegerFormat format = IntegersOf(type_.format);
    const int num_blocks = num_inputs_ / type_.num_weights;
    const std::byte* blocks = rows_ + std::int64_t{row} * num_blocks * type_.num_bytes;
    for (int i = 0; i < num_blocks; ++i) {
      ReadGroup(BlockCursor(blocks + i * type_.num_bytes), format,
                matrix.values(output) + i * kWeightGroup, matrix.scales(output) + i,
                format.has_minimum() ? matrix.minima(output) + i : nullptr);
    }
  }

  void ReadFloats(int row, float* out) const override {
    const IntegerMatrix matrix(type_.format, 1, num_inputs_);
    ReadIntegers(row, matrix, 0);
    Dequantize(matrix.view(), 0, out);
  }

 private:
  const BlockType& type_;
  const std::byte* rows_;
  int num_inputs_;
};

}  // namespace

std::span<const BlockType> BlockTypes() { return kTypes; }

const BlockType* FindBlockType(const std::string& name) {
  for (const BlockType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

std::unique_ptr<StoredIntegers> OpenBlocks(const BlockType& type, const std::byte* rows,
                                           int num_inputs) {
  return std::make_unique<Blocks>(type, rows, num_inputs);
}

}  // namespace forerun
