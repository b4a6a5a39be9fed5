#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "cuda/emulation/in_every_order.h"
#include "cuda/ops/cuda_ops.h"
#include "forerun/error.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/ops/gpu_rows.h"

namespace forerun::cuda {
namespace {

using emulation::InEveryOrder;
using forerun::testing::NumExamples;

constexpr WeightFormat kFormats[] = {WeightFormat::kBFloat16, WeightFormat::kFloat32};

// A matrix of a few stacked ones, and what is multiplied with it.
struct Case {
  Case(Random& random, WeightFormat format_, int num_rows, bool is_gated = false,
       int most_outputs = 40)
      : format(format_), num_inputs(random.Between(1, 200)), x(random, num_rows, num_inputs) {
    const int count = is_gated ? 2 : random.Between(1, 3);
    const int each = random.Between(1, most_outputs);
    for (int i = 0; i < count; ++i) {
      const int num_outputs = is_gated ? each : random.Between(1, most_outputs);
      weights.emplace_back(random, num_outputs, num_inputs, 1.0f);
    }
    norm = random.Normals(num_inputs);
    bias = random.Normals(num_outputs());
  }

  int num_outputs() const {
    int sum = 0;
    for (const HostRows& part : weights) sum += part.rows;
    return sum;
  }
  const float* WeightsOf(int output) const {
    for (const HostRows& part : weights) {
      if (output < part.rows) return part.row(output);
      output -= part.rows;
    }
    return nullptr;
  }
  std::unique_ptr<PackedMatrix> Pack(CudaOps& ops) const {
    std::vector<TensorView> views;
    for (const HostRows& part : weights) {
      views.push_back({part.values.data(), DType::kFloat32, {part.rows, part.cols}});
    }
    return ops.Pack(views, format);
  }
  float Kept(float x_) const { return format == WeightFormat::kBFloat16 ? Rounded(x_) : x_; }

  // In double precision, of what the kernel multiplies; and the sum of what is added, by magnitude.
  struct Expected {
    double value, magnitude;
  };
  Expected Product(int row, int output, bool has_norm, bool has_bias) const {
    double sum = 0, magnitude = 0, squares = 0;
    for (int k = 0; k < num_inputs; ++k) {
      const float input = x.row(row)[k];
      squares += double{input} * input;
      const double term =
          double{Kept(has_norm ? input * norm[k] : input)} * double{Kept(WeightsOf(output)[k])};
      sum += term;
      magnitude += std::abs(term);
    }
    const double scale = has_norm ? 1.0 / std::sqrt(squares / num_inputs + kEps) : 1.0;
    const double added = has_bias ? bias[output] : 0.0;
    return {sum * scale + added, magnitude * scale + std::abs(added)};
  }

  static constexpr float kEps = 1e-5f;

  WeightFormat format;
  int num_inputs;
  HostRows x;
  std::vector<HostRows> weights;
  std::vector<float> norm, bias;
};

class ProductTest : public ::testing::TestWithParam<WeightFormat> {
 protected:
  FloatVector Upload(const std::vector<float>& values) { return {ops_.memory(), values}; }

  CudaOps ops_;
};

TEST_P(ProductTest, AgreesWithDoublePrecision) {
  Random random(1);
  for (int i = 0; i < NumExamples(60, 200); ++i) {
    const int num_rows = i % 4 == 0 ? random.Between(9, 70) : random.Between(1, 8);
    const Case test(random, GetParam(), num_rows);
    const auto matrix = test.Pack(ops_);
    const bool has_norm = random.Flip(), has_bias = random.Flip(), accumulates = random.Flip();
    const FloatVector norm = Upload(test.norm), bias = Upload(test.bias);
    const float* bias_data = has_bias ? bias.data() : nullptr;
    const GpuRows x(ops_.memory(), test.x, random.Between(0, 2));
    const HostRows before(random, num_rows, test.num_outputs());
    GpuRows y(ops_.memory(), before, random.Between(0, 2));
    if (has_norm) {
      ops_.NormMatMul(x, {norm.data(), Case::kEps}, *matrix, bias_data, y);
    } else {
      ops_.MatMul(x, *matrix, bias_data, accumulates, y);
    }
    const HostRows out = y.Download();
    for (int r = 0; r < num_rows; ++r) {
      for (int o = 0; o < test.num_outputs(); ++o) {
        auto [value, magnitude] = test.Product(r, o, has_norm, has_bias);
        if (!has_norm && accumulates) value += before.row(r)[o];
        ASSERT_NEAR(out.row(r)[o], value, 2e-6 * magnitude + 1e-6) << i << " " << r << " " << o;
      }
    }
  }
}

TEST_P(ProductTest, ARowsBitsDependOnTheRowAlone) {
  Random random(2);
  constexpr int kMany = 150;
  const Case test(random, GetParam(), kMany);
  const auto matrix = test.Pack(ops_);
  const FloatVector norm = Upload(test.norm);
  const auto run = [&](int begin, int count) {
    const GpuRows x(ops_.memory(), test.x.Slice(begin, count));
    GpuRows y(ops_.memory(), count, test.num_outputs());
    ops_.NormMatMul(x, {norm.data(), Case::kEps}, *matrix, nullptr, y);
    return y.Download();
  };
  std::vector<HostRows> alone;
  for (int r = 0; r < kMany; ++r) alone.push_back(run(r, 1));
  for (int count = 1; count <= kMany; count = count < 18 ? count + 1 : count + 13) {
    const HostRows together = run(kMany - count, count);
    for (int r = 0; r < count; ++r) {
      ASSERT_TRUE(SameBits(together.row(r), alone[kMany - count + r].row(0), test.num_outputs()))
          << count << " " << r;
    }
  }
}

// Prompts have a kernel of their own.
TEST_P(ProductTest, ManyRowsHaveTheBitsOfFew) {
  Random random(8);
  for (int i = 0; i < NumExamples(12, 60); ++i) {
    const bool is_gated = i % 3 == 0;
    // A block takes 128 outputs, or 64 gates.
    Case test(random, GetParam(), random.Between(65, 300), is_gated, /*most_outputs=*/150);
    const auto matrix = test.Pack(ops_);
    const FloatVector norm = Upload(test.norm), bias = Upload(test.bias);
    const float* bias_data = random.Flip() ? bias.data() : nullptr;
    const int num_gated = test.num_outputs() / 2;
    const HostRows down(random, 9, num_gated);
    const TensorView view{down.values.data(), DType::kFloat32, {9, num_gated}};
    const auto packed_down = is_gated ? ops_.Pack({&view, 1}, GetParam()) : nullptr;
    const HostRows before(random, test.x.rows, is_gated ? 9 : test.num_outputs());
    const auto run = [&](int begin, int count) {
      const GpuRows x(ops_.memory(), test.x.Slice(begin, count), /*padding=*/i % 2);
      GpuRows y(ops_.memory(), before.Slice(begin, count));
      if (is_gated) {
        ops_.GatedMatMul(x, {norm.data(), Case::kEps},
                         {*matrix, bias_data, Activation::kGelu, *packed_down, nullptr},
                         /*accumulate=*/true, y);
      } else if (i % 3 == 1) {
        ops_.NormMatMul(x, {norm.data(), Case::kEps}, *matrix, bias_data, y);
      } else {
        ops_.MatMul(x, *matrix, bias_data, /*accumulate=*/true, y);
      }
      return y.Download();
    };
    const HostRows together = run(0, test.x.rows);
    for (int begin = 0; begin < test.x.rows; begin += 64) {
      const int count = std::min(64, test.x.rows - begin);
      const HostRows few = run(begin, count);
      for (int r = 0; r < count; ++r) {
        ASSERT_TRUE(SameBits(together.row(begin + r), few.row(r), few.cols))
            << i << " " << begin + r;
      }
    }
  }
}

TEST_P(ProductTest, ThreadsMayRunInAnyOrder) {
  Random random(3);
  const Case test(random, GetParam(), 9);
  const auto matrix = test.Pack(ops_);
  const GpuRows x(ops_.memory(), test.x);
  std::vector<HostRows> results;
  InEveryOrder([&] {
    GpuRows y(ops_.memory(), test.x.rows, test.num_outputs());
    ops_.MatMul(x, *matrix, nullptr, /*accumulate=*/false, y);
    results.push_back(y.Download());
    ASSERT_EQ(results[0].values, results.back().values);
  });
}

TEST_P(ProductTest, ARowOfNaNsHarmsNoOther) {
  Random random(4);
  Case test(random, GetParam(), 8);
  std::fill_n(test.x.row(3), test.num_inputs, NAN);
  const auto matrix = test.Pack(ops_);
  const GpuRows x(ops_.memory(), test.x);
  GpuRows y(ops_.memory(), 8, test.num_outputs());
  ops_.MatMul(x, *matrix, nullptr, /*accumulate=*/false, y);
  const HostRows out = y.Download();
  for (int r = 0; r < 8; ++r) {
    for (int o = 0; o < test.num_outputs(); ++o) ASSERT_EQ(std::isnan(out.row(r)[o]), r == 3);
  }
}

// down(activation(gates) * ups), where gates and ups are two matrices, or one.
TEST_P(ProductTest, GatedProductsAgreeWithDoublePrecision) {
  Random random(5);
  for (int i = 0; i < NumExamples(60, 200); ++i) {
    const int num_rows = i % 8 == 0 ? random.Between(9, 40) : random.Between(1, 8);
    Case test(random, GetParam(), num_rows, /*is_gated=*/true);
    const int num_gated = test.weights[0].rows;
    if (random.Flip()) {  // one matrix of gates and ups
      HostRows both(2 * num_gated, test.num_inputs);
      std::copy(test.weights[0].values.begin(), test.weights[0].values.end(), both.row(0));
      std::copy(test.weights[1].values.begin(), test.weights[1].values.end(), both.row(num_gated));
      test.weights = {both};
    }
    const auto gate_up = test.Pack(ops_);
    const HostRows down(random, random.Between(1, 30), num_gated);
    const TensorView down_view{down.values.data(), DType::kFloat32, {down.rows, num_gated}};
    const auto packed_down = ops_.Pack({&down_view, 1}, GetParam());
    const FloatVector norm = Upload(test.norm), bias = Upload(test.bias);
    const GpuRows x(ops_.memory(), test.x);
    GpuRows y(ops_.memory(), num_rows, down.rows);
    ops_.GatedMatMul(x, {norm.data(), Case::kEps},
                     {*gate_up, bias.data(), Activation::kSilu, *packed_down, nullptr},
                     /*accumulate=*/false, y);
    const HostRows out = y.Download();
    for (int r = 0; r < num_rows; ++r) {
      std::vector<double> gated(num_gated);
      for (int o = 0; o < num_gated; ++o) {
        const double gate = test.Product(r, o, true, true).value;
        const double up = test.Product(r, num_gated + o, true, true).value;
        gated[o] = gate / (1.0 + std::exp(-gate)) * up;
      }
      for (int o = 0; o < down.rows; ++o) {
        double value = 0, magnitude = 0;
        for (int k = 0; k < num_gated; ++k) {
          const double term = gated[k] * test.Kept(down.row(o)[k]);
          value += term;
          magnitude += std::abs(term);
        }
        // What is gated is rounded to bfloat16 before it is multiplied.
        const double precision = GetParam() == WeightFormat::kBFloat16 ? 0x1p-8 : 4e-6;
        ASSERT_NEAR(out.row(r)[o], value, precision * magnitude + 1e-5) << i << " " << r;
      }
    }
  }
}

// They are kept as they are, and multiplied as float32.
TEST_P(ProductTest, Float16WeightsHaveTheBitsOfTheirFloats) {
  Random random(9);
  for (int i = 0; i < NumExamples(10, 60); ++i) {
    Case test(random, GetParam(), random.Between(1, 80));
    test.weights.erase(test.weights.begin() + 1, test.weights.end());
    std::vector<std::uint16_t> halves;
    for (float& weight : test.weights[0].values) {
      halves.push_back(FloatToFloat16(weight));
      weight = Float16ToFloat(halves.back());
    }
    const int num_outputs = test.num_outputs();
    const TensorView view{halves.data(), DType::kFloat16, {num_outputs, test.num_inputs}};
    const auto from_halves = ops_.Pack({&view, 1}, GetParam()), from_floats = test.Pack(ops_);
    if (GetParam() == WeightFormat::kFloat32) {
      EXPECT_EQ(2 * from_halves->num_bytes(), from_floats->num_bytes());
    }
    const GpuRows x(ops_.memory(), test.x);
    const TokenId token = num_outputs - 1;
    std::vector<HostRows> results;
    for (const PackedMatrix* matrix : {from_halves.get(), from_floats.get()}) {
      GpuRows y(ops_.memory(), test.x.rows, num_outputs), row(ops_.memory(), 1, test.num_inputs);
      ops_.MatMul(x, *matrix, nullptr, /*accumulate=*/false, y);
      ops_.Embed(ops_.Begin({.tokens = {&token, 1}}), *matrix, 1.0f, row);
      results.push_back(y.Download());
      results.push_back(row.Download());
    }
    ASSERT_EQ(results[0].values, results[2].values);
    ASSERT_EQ(results[1].values, results[3].values);
  }
}

TEST_P(ProductTest, AnEmbeddingIsARowOfTheTable) {
  Random random(6);
  for (int i = 0; i < 50; ++i) {
    const Case test(random, GetParam(), 1);
    const auto table = test.Pack(ops_);
    std::vector<TokenId> tokens(random.Between(1, 20));
    for (TokenId& token : tokens) token = random.Between(0, test.num_outputs() - 1);
    const ForwardRows& rows = ops_.Begin({.tokens = tokens});
    GpuRows out(ops_.memory(), static_cast<int>(tokens.size()), test.num_inputs, /*padding=*/1);
    ops_.Embed(rows, *table, 0.5f, out);
    const HostRows embedded = out.Download();
    for (std::size_t r = 0; r < tokens.size(); ++r) {
      for (int k = 0; k < test.num_inputs; ++k) {
        ASSERT_EQ(embedded.row(static_cast<int>(r))[k],
                  0.5f * test.Kept(test.WeightsOf(tokens[r])[k]));
      }
    }
  }
}

TEST_P(ProductTest, TokensOutsideTheTableAreRefused) {
  Random random(7);
  const Case test(random, GetParam(), 1);
  const auto table = test.Pack(ops_);
  const TokenId token = test.num_outputs();
  const ForwardRows& rows = ops_.Begin({.tokens = {&token, 1}});
  GpuRows out(ops_.memory(), 1, test.num_inputs);
  EXPECT_THROW(ops_.Embed(rows, *table, 1.0f, out), InternalError);
}

std::string FormatName(const ::testing::TestParamInfo<WeightFormat>& param) {
  return Name(param.param);
}
INSTANTIATE_TEST_SUITE_P(Formats, ProductTest, ::testing::ValuesIn(kFormats), FormatName);

}  // namespace
}  // namespace forerun::cuda
