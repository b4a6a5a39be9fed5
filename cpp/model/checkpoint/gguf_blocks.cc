#include "cpp/model/checkpoint/gguf_blocks.h"

#include <array>
#include <cstring>

namespace forerun {
namespace {

constexpr int kSuperBlock = 256;

constexpr std::array<BlockType, 8> kTypes = {{{"Q8_0", WeightFormat::kInt8, 32, 34},
                                              {"Q4_0", WeightFormat::kInt4, 32, 18},
                                              {"Q4_1", WeightFormat::kInt4Min, 32, 20},
                                              {"Q5_0", WeightFormat::kInt5, 32, 22},
                                              {"Q5_1", WeightFormat::kInt5Min, 32, 24},
                                              {"Q4_K", WeightFormat::kInt4K, kSuperBlock, 144},
                                              {"Q5_K", WeightFormat::kInt5K, kSuperBlock, 176},
                                              {"Q6_K", WeightFormat::kInt6K, kSuperBlock, 210}}};

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

// Where a block's weights and scales go.
struct BlockOut {
  std::int8_t* values;
  std::uint16_t* scale;
  std::uint16_t* minimum;
  std::uint8_t* sub_scales;
  std::uint8_t* sub_minima;
};

// Null stays null.
template <typename T>
T* Advance(T* data, int count) {
  return data == nullptr ? nullptr : data + count;
}

// A block of 32 weights has, in this order: scale, minimum, fifth bits, weights. The first half of
// the weights is in the low four bits.
void ReadGroup(BlockCursor block, IntegerFormat format, const BlockOut& out) {
  constexpr int kGroup = 32, kHalf = kGroup / 2;
  *out.scale = block.Take<std::uint16_t>();
  if (format.scales == ScaleKind::kMinimum) *out.minimum = block.Take<std::uint16_t>();
  if (format.bits == 8) {
    std::memcpy(out.values, block.Skip(kGroup), kGroup);
    return;
  }
  const std::uint32_t fifth_bits = format.bits == 5 ? block.Take<std::uint32_t>() : 0;
  const std::uint8_t* nibbles = block.Skip(kHalf);
  for (int i = 0; i < kHalf; ++i) {
    out.values[i] = static_cast<std::int8_t>((nibbles[i] & 0x0f) - format.zero);
    out.values[i + kHalf] = static_cast<std::int8_t>((nibbles[i] >> 4) - format.zero);
  }
  for (int i = 0; i < kGroup; ++i) {
    out.values[i] = static_cast<std::int8_t>(out.values[i] + (fifth_bits >> i & 1) * 16);
  }
}

// Eight scales and eight minima of 6 bits: the first four of each in the low bits of bytes 0 to 3
// and 4 to 7, whose upper two bits are those of the others; their low four are in bytes 8 to 11.
void ReadSixBits(const std::uint8_t* packed, const BlockOut& out) {
  for (int i = 0; i < 4; ++i) {
    out.sub_scales[i] = packed[i] & 0x3f;
    out.sub_minima[i] = packed[4 + i] & 0x3f;
    out.sub_scales[4 + i] = (packed[8 + i] & 0x0f) | (packed[i] >> 2 & 0x30);
    out.sub_minima[4 + i] = packed[8 + i] >> 4 | (packed[4 + i] >> 2 & 0x30);
  }
}

// Q4_K and Q5_K: every 32 bytes have one group of 32 weights in the low bits and the next in the
// high ones. Bit g of a byte of fifth bits is group g's.
void ReadSuperBlock(BlockCursor block, IntegerFormat format, const BlockOut& out) {
  *out.scale = block.Take<std::uint16_t>();
  *out.minimum = block.Take<std::uint16_t>();
  ReadSixBits(block.Skip(12), out);
  const std::uint8_t* fifth_bits = format.bits == 5 ? block.Skip(kSuperBlock / 8) : nullptr;
  const std::uint8_t* nibbles = block.Skip(kSuperBlock / 2);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int group = i / 32, column = i % 32;
    int value = nibbles[group / 2 * 32 + column] >> group % 2 * 4 & 0x0f;
    if (fifth_bits != nullptr) value |= (fifth_bits[column] >> group & 1) << 4;
    out.values[i] = static_cast<std::int8_t>(value);
  }
}

// Q6_K: each half of the block has four groups of 32, whose low four bits are in 64 bytes, the
// first two groups low, and whose upper two bits are in the bits of 32 bytes, group by group.
void ReadSixBitBlock(BlockCursor block, IntegerFormat format, const BlockOut& out) {
  const std::uint8_t* low = block.Skip(kSuperBlock / 2);
  const std::uint8_t* high = block.Skip(kSuperBlock / 4);
  std::memcpy(out.sub_scales, block.Skip(kSuperBlock / format.group), kSuperBlock / format.group);
  *out.scale = block.Take<std::uint16_t>();
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128, group = i / 32 % 4, column = i % 32;
    const int nibble = low[half * 64 + group % 2 * 32 + column] >> group / 2 * 4 & 0x0f;
    const int upper = high[half * 32 + column] >> group * 2 & 3;
    out.values[i] = static_cast<std::int8_t>((nibble | upper << 4) - format.zero);
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
    const int groups_per_block = type_.num_weights / format.group;
    const std::byte* blocks = rows_ + std::int64_t{row} * num_blocks * type_.num_bytes;
    for (int i = 0; i < num_blocks; ++i) {
      const BlockCursor block(blocks + std::int64_t{i} * type_.num_bytes);
      const BlockOut out = {matrix.values(output) + i * type_.num_weights,
                            matrix.scales(output) + i, Advance(matrix.minima(output), i),
                            Advance(matrix.sub_scales(output), i * groups_per_block),
                            Advance(matrix.sub_minima(output), i * groups_per_block)};
      if (format.scales == ScaleKind::kSuper) {
        ReadSuperBlock(block, format, out);
      } else if (format.scales == ScaleKind::kSubScale) {
        ReadSixBitBlock(block, format, out);
      } else {
        ReadGroup(block, format, out);
      }
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
