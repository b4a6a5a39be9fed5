// Integer weights on a GPU: what is stored, and what is multiplied.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cuda/emulation/in_every_order.h"
#include "cuda/ops/cuda_ops.h"
#include "forerun/error.h"
#include "tests/cpp/ops/integers_testing.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/build_kind.h"
#include "tests/cuda/ops/gpu_rows.h"

namespace forerun::cuda {
namespace {

using emulation::InEveryOrder;
using forerun::testing::NumExamples;

HostRows RandomRows(forerun::Random& random, int rows, int cols) {
  HostRows out(rows, cols);
  for (float& value : out.values) value = random.Normal();
  return out;
}

class IntegerProductTest : public ::testing::TestWithParam<WeightFormat> {
 protected:
  HostRows Unpack(const PackedMatrix& matrix) {
    std::vector<TokenId> all(matrix.num_outputs());
    for (int i = 0; i < matrix.num_outputs(); ++i) all[i] = i;
    GpuRows out(ops_.memory(), matrix.num_outputs(), matrix.num_inputs());
    ops_.Embed(ops_.Begin({.tokens = all}), matrix, 1.0f, out);
    return out.Download();
  }
  HostRows MatMul(const HostRows& x, const PackedMatrix& matrix) {
    const GpuRows rows(ops_.memory(), x);
    GpuRows y(ops_.memory(), x.rows, matrix.num_outputs());
    ops_.MatMul(rows, matrix, nullptr, /*accumulate=*/false, y);
    return y.Download();
  }
  // Of scales of about 1.
  TestIntegers RandomIntegers(forerun::Random& random, int num_outputs, int num_inputs) {
    return {random, GetParam(), num_outputs, FullInputs(GetParam(), num_inputs), /*exponent=*/-4};
  }

  CudaOps ops_;
};

TEST_P(IntegerProductTest, KeepsReadyIntegersOfEveryShape) {
  forerun::Random random(1);
  for (int i = 0; i < NumExamples(20, 200); ++i) {
    const int num_inputs = FullInputs(GetParam(), 1 + random.Below(300));
    const TestIntegers integers(random, GetParam(), 1 + random.Below(40), num_inputs);
    const HostRows unpacked = Unpack(*integers.Pack(ops_));
    for (int o = 0; o < unpacked.rows; ++o) {
      for (int k = 0; k < num_inputs; ++k) {
        ASSERT_EQ(unpacked.row(o)[k], integers.At(o, k)) << i << " " << o << " " << k;
      }
    }
  }
}

TEST_P(IntegerProductTest, AgreesWithDoublePrecision) {
  forerun::Random random(2);
  constexpr float kEps = 1e-5f;
  for (int i = 0; i < NumExamples(30, 200); ++i) {
    const int num_rows = i % 4 == 0 ? 9 + random.Below(62) : 1 + random.Below(8);
    const TestIntegers integers =
        RandomIntegers(random, 1 + random.Below(70), 1 + random.Below(600));
    const auto matrix = integers.Pack(ops_);
    const int num_inputs = matrix->num_inputs(), num_outputs = matrix->num_outputs();
    const bool has_norm = random.Below(2) == 1, has_bias = random.Below(2) == 1;
    const std::vector<float> norm = random.Normals(num_inputs), bias = random.Normals(num_outputs);
    const FloatVector gpu_norm(ops_.memory(), norm), gpu_bias(ops_.memory(), bias);
    const float* bias_data = has_bias ? gpu_bias.data() : nullptr;
    const HostRows x = RandomRows(random, num_rows, num_inputs);
    const HostRows before = RandomRows(random, num_rows, num_outputs);
    const GpuRows gpu_x(ops_.memory(), x, random.Below(3));
    GpuRows y(ops_.memory(), before, random.Below(3));
    if (has_norm) {
      ops_.NormMatMul(gpu_x, {gpu_norm.data(), kEps}, *matrix, bias_data, y);
    } else {
      ops_.MatMul(gpu_x, *matrix, bias_data, /*accumulate=*/true, y);
    }
    const HostRows out = y.Download();
    for (int r = 0; r < num_rows; ++r) {
      double squares = 0;
      for (int k = 0; k < num_inputs; ++k) squares += double{x.row(r)[k]} * x.row(r)[k];
      const double scale = has_norm ? 1.0 / std::sqrt(squares / num_inputs + kEps) : 1.0;
      for (int o = 0; o < num_outputs; ++o) {
        double sum = 0, magnitude = 0;
        for (int k = 0; k < num_inputs; ++k) {
          const float input = Rounded(has_norm ? x.row(r)[k] * norm[k] : x.row(r)[k]);
          sum += double{integers.At(o, k)} * input;
          magnitude += 8.0 * std::abs(double{input});  // of a scale times an integer, at most
        }
        const double added = (has_bias ? bias[o] : 0.0) + (has_norm ? 0.0 : before.row(r)[o]);
        ASSERT_NEAR(out.row(r)[o], sum * scale + added, 4e-6 * magnitude * scale + 1e-6)
            << i << " " << r << " " << o;
      }
    }
  }
}

TEST_P(IntegerProductTest, ARowsBitsDependOnTheRowAlone) {
  forerun::Random random(3);
  const TestIntegers integers = RandomIntegers(random, 50, 300);
  const auto matrix = integers.Pack(ops_);
  const HostRows x = RandomRows(random, 70, matrix->num_inputs());
  std::vector<HostRows> alone;
  for (int r = 0; r < 70; ++r) alone.push_back(MatMul(x.Slice(r, 1), *matrix));
  const int step = testing::IsPlainBuild() ? 1 : 4;
  for (int count = 2; count <= 70; count = count < 18 ? count + step : count + 13) {
    const HostRows together = MatMul(x.Slice(70 - count, count), *matrix);
    for (int r = 0; r < count; ++r) {
      ASSERT_TRUE(SameBits(together.row(r), alone[70 - count + r].row(0), 50)) << count << " " << r;
    }
  }
}

// Two matrices are gated in one pass; the same outputs as one matrix are not.
TEST_P(IntegerProductTest, GatedInOnePassOrInTwoTheBitsAreTheSame) {
  forerun::Random random(4);
  for (const int num_rows : {1, 5, 12, 40}) {
    const int num_gated = FullInputs(GetParam(), 1 + random.Below(40));
    const TestIntegers both = RandomIntegers(random, 2 * num_gated, 1 + random.Below(200));
    const TestIntegers down = RandomIntegers(random, 20, num_gated);
    IntegerView gates = both.view, ups = both.view;
    gates.num_outputs = ups.num_outputs = num_gated;
    const auto skip = [&](auto*& values, int each) {
      if (values != nullptr) values += std::int64_t{num_gated} * each;
    };
    skip(ups.values, both.view.num_inputs);
    skip(ups.scales, both.view.num_scales());
    skip(ups.minima, both.view.num_scales());
    skip(ups.sub_scales, both.view.num_groups());
    skip(ups.sub_minima, both.view.num_groups());
    skip(ups.wide_scales, both.view.num_scales());
    skip(ups.zeros, both.view.num_scales());
    const WeightSource sources[] = {gates, ups};
    const auto in_two_parts = ops_.Pack(sources), whole = both.Pack(ops_);
    const auto packed_down = down.Pack(ops_);
    const FloatVector norm(ops_.memory(), random.Normals(whole->num_inputs()));
    const GpuRows x(ops_.memory(), RandomRows(random, num_rows, whole->num_inputs()));
    std::vector<HostRows> results;
    for (const PackedMatrix* gate_up : {in_two_parts.get(), whole.get()}) {
      GpuRows y(ops_.memory(), num_rows, 20);
      ops_.GatedMatMul(x, {norm.data(), 1e-5f},
                       {*gate_up, nullptr, Activation::kSilu, *packed_down, nullptr},
                       /*accumulate=*/false, y);
      results.push_back(y.Download());
    }
    ASSERT_EQ(results[0].values, results[1].values) << num_rows;
  }
}

TEST_P(IntegerProductTest, FormatsShareAMatrix) {
  forerun::Random random(5);
  const TestIntegers integers = RandomIntegers(random, 21, 300);
  const int num_inputs = integers.view.num_inputs;
  const TestIntegers others(random, WeightFormat::kInt6K, 7, FullInputs(WeightFormat::kInt6K, 300),
                            -4);
  const TestWeight floats(random, 18, num_inputs);
  std::vector<WeightSource> sources = {integers.view, {floats.view, WeightFormat::kBFloat16}};
  if (num_inputs == others.view.num_inputs) sources.emplace_back(others.view);
  const auto stacked = ops_.Pack(sources);
  const HostRows x = RandomRows(random, 6, num_inputs);
  const HostRows y = MatMul(x, *stacked);
  int first = 0;
  for (const WeightSource& source : sources) {
    const HostRows own = MatMul(x, *ops_.Pack({&source, 1}));
    for (int r = 0; r < 6; ++r) {
      ASSERT_TRUE(SameBits(y.row(r) + first, own.row(r), own.cols)) << first;
    }
    first += own.cols;
  }
  EXPECT_EQ(first, y.cols);
}

TEST_P(IntegerProductTest, ThreadsMayRunInAnyOrder) {
  forerun::Random random(6);
  const TestIntegers integers = RandomIntegers(random, 40, 200);
  const auto matrix = integers.Pack(ops_);
  const HostRows x = RandomRows(random, 9, matrix->num_inputs());
  const HostRows expected = MatMul(x, *matrix);
  InEveryOrder([&] { ASSERT_EQ(MatMul(x, *matrix).values, expected.values); });
}

TEST_P(IntegerProductTest, WhatIsNotFiniteShowsInItsRowAlone) {
  forerun::Random random(7);
  const TestIntegers integers = RandomIntegers(random, 20, 100);
  const auto matrix = integers.Pack(ops_);
  HostRows x = RandomRows(random, 8, matrix->num_inputs());
  x.row(3)[random.Below(x.cols)] = NAN;
  const HostRows out = MatMul(x, *matrix);
  for (int r = 0; r < 8; ++r) {
    for (int o = 0; o < 20; ++o) ASSERT_EQ(std::isnan(out.row(r)[o]), r == 3);
  }
}

TEST_P(IntegerProductTest, IntegersThatDoNotFitAreRefused) {
  if (GetParam() == WeightFormat::kInt8) return;  // all do
  forerun::Random random(8);
  TestIntegers integers = RandomIntegers(random, 5, 40);
  integers.values[random.Below(static_cast<int>(integers.values.size()))] = 64;
  EXPECT_THROW(integers.Pack(ops_), InternalError);
}

std::string FormatName(const ::testing::TestParamInfo<WeightFormat>& param) {
  return Name(param.param);
}
INSTANTIATE_TEST_SUITE_P(Formats, IntegerProductTest, ::testing::ValuesIn(IntegerFormats()),
                         FormatName);

class QuantizeOnGpuTest : public ::testing::TestWithParam<WeightFormat> {};

// The CPU's integers and scales, bit for bit.
TEST_P(QuantizeOnGpuTest, MakesTheIntegersOfTheCpu) {
  forerun::Random random(9);
  ThreadTeam team(1);
  CpuOps cpu(team, Isa::kPortable);
  CudaOps gpu;
  for (int i = 0; i < NumExamples(40, 200); ++i) {
    TestWeight weight(random, 1 + random.Below(40), 1 + random.Below(200));
    const float unit = std::ldexp(1.0f, random.Below(60) - 40);
    for (float& value : weight.values) {
      value *= unit;
      const int kind = random.Below(2000);
      if (kind < 40) value = 0.0f;
      if (kind == 40) value = NAN;
      if (kind == 41) value = -INFINITY;
    }
    std::vector<std::uint16_t> halves;
    if (i % 3 != 0) {
      weight.view.dtype = i % 3 == 1 ? DType::kBFloat16 : DType::kFloat16;
      for (const float value : weight.values) {
        halves.push_back(i % 3 == 1 ? FloatToBFloat16(value) : FloatToFloat16(value));
      }
      weight.view.data = halves.data();
    }
    const WeightSource source(weight.view, GetParam());
    const auto on_cpu = cpu.Pack({&source, 1}), on_gpu = gpu.Pack({&source, 1});
    const TestRows expected = UnpackAll(cpu, *on_cpu);
    std::vector<TokenId> all(on_gpu->num_outputs());
    for (int o = 0; o < on_gpu->num_outputs(); ++o) all[o] = o;
    GpuRows out(gpu.memory(), on_gpu->num_outputs(), on_gpu->num_inputs());
    gpu.Embed(gpu.Begin({.tokens = all}), *on_gpu, 1.0f, out);
    const HostRows unpacked = out.Download();
    for (int o = 0; o < unpacked.rows; ++o) {
      for (int k = 0; k < unpacked.cols; ++k) {
        const float value = unpacked.row(o)[k], wanted = expected.row(o)[k];
        ASSERT_TRUE(value == wanted || (std::isnan(value) && std::isnan(wanted)))
            << i << " " << o << " " << k << ": " << value << " for " << wanted;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeOnGpuTest,
                         ::testing::Values(WeightFormat::kInt8, WeightFormat::kInt4), FormatName);

}  // namespace
}  // namespace forerun::cuda
