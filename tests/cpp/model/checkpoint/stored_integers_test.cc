// Integers of checkpoints, packed and unpacked: the floats that are read without packing.
// tests/python compares these with what the formats say.
#include "cpp/model/checkpoint/stored_integers.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <numeric>

#include "cpp/model/checkpoint/gguf_blocks.h"
#include "cpp/model/checkpoint/grouped_integers.h"
#include "cpp/model/checkpoint/matrix_sources.h"
#include "cpp/ops/cpu/cpu_backend.h"
#include "cpp/tensor/float16.h"
#include "forerun/error.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

constexpr int kOutputs = 24;

void ExpectPackedAsRead(const StoredIntegers& stored, int num_outputs, int num_inputs) {
  CpuBackend backend(1);
  Ops& ops = backend.ops();
  // Some rows, not in order.
  std::vector<TokenId> rows;
  for (int i = 0; i < num_outputs; ++i) rows.push_back((i * 7 + 3) % num_outputs);
  MatrixSources sources(num_inputs, WeightFormat::kFloat32, /*keeps_integers=*/true, ops);
  sources.Add(stored, rows);
  const auto packed = sources.Pack();
  std::vector<TokenId> all(num_outputs);
  std::iota(all.begin(), all.end(), 0);
  std::vector<float> unpacked(num_outputs * num_inputs), read(num_inputs);
  ops.Embed(ops.Begin({all}), *packed, 1.0f, Rows(unpacked.data(), num_outputs, num_inputs));
  for (int i = 0; i < num_outputs; ++i) {
    stored.ReadFloats(rows[i], read.data());
    for (int k = 0; k < num_inputs; ++k) {
      const float weight = unpacked[i * num_inputs + k];
      if (std::isnan(read[k]) && std::isnan(weight)) continue;
      ASSERT_EQ(weight, read[k]);
    }
  }
}

TEST(Float16Test, EveryFloat16IsExactAndWhatLiesBetweenIsRoundedTowardsZero) {
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float value = Float16ToFloat(static_cast<std::uint16_t>(bits));
    ASSERT_EQ(FloatToFloat16TowardsZero(value), bits);
    ASSERT_EQ(FloatToFloat16TowardsZero(-value), bits | 0x8000u);
    ASSERT_EQ(FloatToFloat16TowardsZero(std::nextafter(value, 1e9f)), bits);
  }
  EXPECT_EQ(FloatToFloat16TowardsZero(0x1p16f), 0x7c00);
  EXPECT_EQ(FloatToFloat16TowardsZero(-INFINITY), 0xfc00);
  EXPECT_TRUE(std::isnan(Float16ToFloat(FloatToFloat16TowardsZero(NAN))));
}

TEST(Float16Test, RoundsToTheNearestAndToEvenInTheMiddle) {
  for (int bits = 0; bits < 0x7bff; ++bits) {
    const float value = Float16ToFloat(bits), next = Float16ToFloat(bits + 1);
    const float middle = (value + next) / 2;
    ASSERT_EQ(FloatToFloat16(value), bits);
    ASSERT_EQ(FloatToFloat16(-value), bits | 0x8000u);
    ASSERT_EQ(FloatToFloat16(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(FloatToFloat16(middle), bits + bits % 2);
    ASSERT_EQ(FloatToFloat16(std::nextafter(middle, 1e9f)), bits + 1);
  }
  EXPECT_EQ(FloatToFloat16(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(FloatToFloat16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToFloat16(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(FloatToFloat16(std::numeric_limits<float>::quiet_NaN()), 0x7e00);
}

TEST(StoredIntegersTest, BlocksOfEveryTypeArePackedAsTheyAre) {
  TinyRandom random(1);
  for (const BlockType& type : BlockTypes()) {
    SCOPED_TRACE(type.name);
    ASSERT_EQ(FindBlockType(type.name), &type);
    const int num_inputs = 3 * type.num_weights;
    // Exactly as large as they must be, so that a sanitizer sees what reads beyond them.
    std::vector<std::byte> blocks(kOutputs * 3 * type.num_bytes);
    for (std::byte& byte : blocks) byte = static_cast<std::byte>(random.Below(256));
    const auto stored = OpenBlocks(type, blocks.data(), num_inputs);
    ASSERT_EQ(stored->format(), type.format);
    ExpectPackedAsRead(*stored, kOutputs, num_inputs);
  }
  EXPECT_EQ(FindBlockType("Q2_K"), nullptr);
}

// Rows that are read only once two are being read.
class MeetingRows final : public StoredIntegers {
 public:
  std::optional<WeightFormat> format() const override { return std::nullopt; }
  void ReadIntegers(int, const IntegerMatrix&, int) const override {}
  void ReadFloats(int, float* out) const override {
    *out = 1.0f;
    std::unique_lock lock(mutex_);
    ++num_arrived_;
    arrived_.notify_all();
    if (!arrived_.wait_for(lock, std::chrono::minutes(1), [&] { return num_arrived_ > 1; })) {
      was_alone_ = true;
    }
  }
  bool was_alone() const { return was_alone_; }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable arrived_;
  mutable int num_arrived_ = 0;
  mutable bool was_alone_ = false;
};

TEST(StoredIntegersTest, SeveralThreadsReadRows) {
  CpuBackend backend(2);
  MatrixSources sources(1, WeightFormat::kFloat32, /*keeps_integers=*/true, backend.ops());
  const MeetingRows rows;
  sources.Add(rows, {0, 1});
  sources.Pack();
  EXPECT_FALSE(rows.was_alone());
}

// The tensors of one layer in memory.
struct TestLayer {
  TestLayer(const LinearQuantization& quantization, int num_inputs, bool has_zeros)
      : shapes(ShapesOf(quantization, "a.", kOutputs, num_inputs)) {
    TinyRandom random(2);
    const bool has_bytes = quantization.layout == LinearLayout::kInt8;
    tensors.name = "a.";
    tensors.num_outputs = kOutputs;
    tensors.num_inputs = num_inputs;
    const auto fill = [&](std::vector<std::uint8_t>& data, DType dtype,
                          const std::vector<std::int64_t>& shape) {
      TensorView view = {nullptr, dtype, shape};
      data.resize(view.num_elements() * SizeOf(dtype));
      for (std::uint8_t& byte : data) byte = static_cast<std::uint8_t>(random.Below(256));
      view.data = data.data();
      return view;
    };
    tensors.weights = fill(weights, has_bytes ? DType::kInt8 : DType::kInt32, shapes.weights);
    tensors.scales = fill(scales, DType::kFloat16, shapes.scales);
    if (has_zeros) {
      tensors.zeros = fill(zeros, has_bytes ? DType::kInt8 : DType::kInt32, shapes.zeros);
    }
  }

  GroupedShapes shapes;
  std::vector<std::uint8_t> weights, scales, zeros;
  GroupedTensors tensors;
};

TEST(StoredIntegersTest, LayersOfEveryLayoutArePackedAsTheyAre) {
  for (LinearLayout layout :
       {LinearLayout::kGptq, LinearLayout::kAwq, LinearLayout::kPacked, LinearLayout::kInt8}) {
    for (int group_size : {0, 24, 32, 64, 128}) {
      for (bool is_symmetric : {false, true}) {
        LinearQuantization quantization;
        quantization.layout = layout;
        quantization.bits = layout == LinearLayout::kInt8 ? 8 : 4;
        quantization.group_size = group_size;
        quantization.is_symmetric = is_symmetric;
        for (int num_inputs : {120, 128, 256, 320}) {
          SCOPED_TRACE(std::to_string(static_cast<int>(layout)) + " " + std::to_string(group_size) +
                       " " + std::to_string(num_inputs));
          const TestLayer layer(quantization, num_inputs, !is_symmetric);
          const auto stored = OpenGroupedIntegers(quantization, layer.tensors);
          const bool has_layout = layout != LinearLayout::kInt8 || is_symmetric;
          EXPECT_EQ(stored->format().has_value(), has_layout && group_size != 24);
          ExpectPackedAsRead(*stored, kOutputs, num_inputs);
        }
      }
    }
  }
}

TEST(StoredIntegersTest, FormatsAreTheSmallestThatHoldTheIntegers) {
  LinearQuantization quantization;
  quantization.layout = LinearLayout::kPacked;
  const auto format = [&](int group_size, int num_inputs, bool is_symmetric) {
    quantization.group_size = group_size;
    quantization.is_symmetric = is_symmetric;
    const TestLayer layer(quantization, num_inputs, !is_symmetric);
    return *OpenGroupedIntegers(quantization, layer.tensors)->format();
  };
  EXPECT_EQ(format(128, 256, false), WeightFormat::kInt4Zero);
  EXPECT_EQ(format(0, 256, true), WeightFormat::kInt4Zero);
  EXPECT_EQ(format(0, 96, true), WeightFormat::kInt4);
  EXPECT_EQ(format(64, 256, true), WeightFormat::kInt4);
  EXPECT_EQ(format(64, 256, false), WeightFormat::kInt5);
  quantization.bits = 8;
  EXPECT_EQ(format(64, 256, true), WeightFormat::kInt8);
}

TEST(StoredIntegersTest, OutputsThatFillNoWordAreRefused) {
  LinearQuantization quantization;
  quantization.layout = LinearLayout::kGptq;
  EXPECT_THROW(ShapesOf(quantization, "a.", 12, 64), CheckpointError);
  EXPECT_THROW(ShapesOf(quantization, "a.", 16, 60), CheckpointError);
  quantization.layout = LinearLayout::kAwq;
  EXPECT_THROW(ShapesOf(quantization, "a.", 12, 64), CheckpointError);
}

}  // namespace
}  // namespace forerun
