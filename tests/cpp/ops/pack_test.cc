#include <cmath>

#include "tests/cpp/ops/ops_testing.h"

namespace forerun {
namespace {

class PackTest : public OpsTest {
 protected:
  // Every weight of a packed matrix, by way of Embed.
  TestRows Unpack(const PackedMatrix& matrix) {
    std::vector<TokenId> all(matrix.num_outputs());
    for (int i = 0; i < matrix.num_outputs(); ++i) all[i] = i;
    TestRows out(matrix.num_outputs(), matrix.num_inputs());
    ops_->Embed(ops_->Begin({all}), matrix, 1.0f, out);
    return out;
  }
};

// Finite half-precision numbers, and what they are worth.
std::vector<std::uint16_t> RandomHalves(Random& random, int count) {
  std::vector<std::uint16_t> bits(count);
  for (std::uint16_t& value : bits) {
    value = static_cast<std::uint16_t>(random.Below(0x7c00) | random.Below(2) << 15);
  }
  return bits;
}

TEST_P(PackTest, KeepsEveryWeightOfEveryShape) {
  Random random(1);
  for (const auto& [num_outputs, num_inputs] :
       {std::pair{1, 1}, {16, 2}, {17, 3}, {48, 128}, {31, 129}, {5, 300}, {130, 257}}) {
    const TestWeight weight(random, num_outputs, num_inputs);
    for (WeightFormat format : kFloatFormats) {
      const auto packed = Pack(weight.view, format);
      EXPECT_EQ(packed->num_outputs(), num_outputs);
      EXPECT_EQ(packed->num_inputs(), num_inputs);
      const TestRows out = Unpack(*packed);
      for (int n = 0; n < num_outputs; ++n) {
        for (int k = 0; k < num_inputs; ++k) {
          float expected = weight.values[n * num_inputs + k];
          if (format == WeightFormat::kBFloat16)
            expected = BFloat16ToFloat(FloatToBFloat16(expected));
          ASSERT_EQ(out.row(n)[k], expected) << n << " " << k;
        }
      }
    }
  }
}

TEST_P(PackTest, ConvertsEverySourceType) {
  Random random(2);
  constexpr int kOutputs = 20, kInputs = 37;
  const std::vector<std::uint16_t> bits = RandomHalves(random, kOutputs * kInputs);
  for (DType source : {DType::kFloat16, DType::kBFloat16}) {
    const TensorView view{bits.data(), source, {kOutputs, kInputs}};
    for (WeightFormat format : kFloatFormats) {
      const TestRows out = Unpack(*Pack(view, format));
      for (int i = 0; i < kOutputs * kInputs; ++i) {
        float expected =
            source == DType::kFloat16 ? Float16ToFloat(bits[i]) : BFloat16ToFloat(bits[i]);
        if (format == WeightFormat::kBFloat16)
          expected = BFloat16ToFloat(FloatToBFloat16(expected));
        ASSERT_EQ(out.row(i / kInputs)[i % kInputs], expected) << Name(source) << " " << i;
      }
    }
  }
}

TEST_P(PackTest, StacksSourcesByOutputs) {
  Random random(3);
  const TestWeight a(random, 21, 10), b(random, 1, 10), c(random, 30, 10);
  const std::vector<TensorView> sources = {a.view, b.view, c.view};
  const auto packed = ops_->Pack(sources, WeightFormat::kFloat32);
  ASSERT_EQ(packed->num_outputs(), 52);
  const TestRows out = Unpack(*packed);
  for (int k = 0; k < 10; ++k) {
    EXPECT_EQ(out.row(20)[k], a.values[20 * 10 + k]);
    EXPECT_EQ(out.row(21)[k], b.values[k]);
    EXPECT_EQ(out.row(22)[k], c.values[k]);
    EXPECT_EQ(out.row(51)[k], c.values[29 * 10 + k]);
  }
}

// A checkpoint's tensors may begin at any byte.
TEST_P(PackTest, ReadsUnalignedSources) {
  Random random(4);
  const TestWeight weight(random, 18, 9);
  std::vector<char> bytes(weight.values.size() * sizeof(float) + 1);
  std::memcpy(bytes.data() + 1, weight.values.data(), bytes.size() - 1);
  const TensorView unaligned{bytes.data() + 1, DType::kFloat32, {18, 9}};
  EXPECT_TRUE(SameBits(Unpack(*Pack(unaligned, WeightFormat::kFloat32)),
                       Unpack(*Pack(weight.view, WeightFormat::kFloat32))));
}

TEST_P(PackTest, CountsItsBytes) {
  Random random(5);
  const TestWeight weight(random, 32, 64);
  EXPECT_EQ(Pack(weight.view, WeightFormat::kBFloat16)->num_bytes(), 32 * 64 * 2);
  EXPECT_EQ(Pack(weight.view, WeightFormat::kFloat32)->num_bytes(), 32 * 64 * 4);
}

TEST_P(PackTest, SourcesThatDoNotStackThrow) {
  Random random(6);
  const TestWeight a(random, 4, 8), b(random, 4, 9);
  const std::vector<TensorView> unequal = {a.view, b.view};
  EXPECT_THROW(ops_->Pack(unequal, WeightFormat::kFloat32), InternalError);
  EXPECT_THROW(ops_->Pack({}, WeightFormat::kFloat32), InternalError);
  TensorView wrong = a.view;
  wrong.shape = {32};
  EXPECT_THROW(Pack(wrong, WeightFormat::kFloat32), InternalError);
  wrong = a.view;
  wrong.dtype = DType::kInt32;
  EXPECT_THROW(Pack(wrong, WeightFormat::kFloat32), InternalError);
  wrong = a.view;
  wrong.shape = {0, 8};
  EXPECT_THROW(Pack(wrong, WeightFormat::kFloat32), InternalError);
}

TEST_P(PackTest, EmbedScalesTheRowsOfItsTokens) {
  Random random(7);
  const TestWeight weight(random, 40, 51);
  for (WeightFormat format : kFloatFormats) {
    const auto table = Pack(weight.view, format);
    const TestRows rows = Unpack(*table);
    const std::vector<TokenId> tokens = {39, 0, 17, 17, 16, 15};
    TestRows out(6, 51, /*padding=*/4);
    ops_->Embed(ops_->Begin({tokens}), *table, 2.5f, out);
    for (int i = 0; i < 6; ++i) {
      for (int k = 0; k < 51; ++k) ASSERT_EQ(out.row(i)[k], 2.5f * rows.row(tokens[i])[k]);
    }
  }
}

TEST_P(PackTest, EmbedRefusesTokensAndRowsThatDoNotFit) {
  Random random(8);
  const TestWeight weight(random, 10, 4);
  const auto table = Pack(weight.view, WeightFormat::kFloat32);
  TestRows out(1, 4), narrow(1, 3);
  const std::vector<TokenId> good = {9}, high = {10}, negative = {-1}, two = {1, 2};
  ops_->Embed(ops_->Begin({good}), *table, 1.0f, out);
  EXPECT_THROW(ops_->Embed(ops_->Begin({high}), *table, 1.0f, out), InternalError);
  EXPECT_THROW(ops_->Embed(ops_->Begin({negative}), *table, 1.0f, out), InternalError);
  EXPECT_THROW(ops_->Embed(ops_->Begin({two}), *table, 1.0f, out), InternalError);
  EXPECT_THROW(ops_->Embed(ops_->Begin({good}), *table, 1.0f, narrow), InternalError);
}

FORERUN_FOR_EVERY_ISA(PackTest);

}  // namespace
}  // namespace forerun
