#include <cmath>

#include "tests/cpp/ops/ops_testing.h"

namespace forerun {
namespace {

// The contract, plainly: sums in double of what the packed weights hold.
double NaiveOutput(const float* x, const float* w, int num_inputs, WeightFormat format,
                   bool rounds_activations) {
  double sum = 0;
  for (int i = 0; i < num_inputs; ++i) {
    float input = x[i], weight = w[i];
    if (format == WeightFormat::kBFloat16) {
      weight = BFloat16ToFloat(FloatToBFloat16(weight));
      if (rounds_activations) input = BFloat16ToFloat(FloatToBFloat16(input));
    }
    sum += double{input} * weight;
  }
  return sum;
}

struct Shape {
  int rows, num_outputs, num_inputs;
};

class MatMulTest : public OpsTest {
 protected:
  void CheckShape(const Shape& shape, WeightFormat format, bool has_bias, bool accumulate) {
    Random random(shape.rows * 7919 + shape.num_outputs * 31 + shape.num_inputs);
    const TestWeight weight(random, shape.num_outputs, shape.num_inputs);
    const auto packed = Pack(weight.view, format);
    const TestRows x = random.NormalRows(shape.rows, shape.num_inputs, 1.0f, /*padding=*/3);
    const std::vector<float> bias = random.Normals(shape.num_outputs);
    TestRows y(shape.rows, shape.num_outputs, /*padding=*/5);
    TestRows before = random.NormalRows(shape.rows, shape.num_outputs);
    if (accumulate) {
      for (int r = 0; r < shape.rows; ++r) {
        std::copy_n(before.row(r), shape.num_outputs, y.row(r));
      }
    }
    ops_->MatMul(x, *packed, has_bias ? bias.data() : nullptr, accumulate, y);
    const bool rounds = RoundsActivations(GetParam());
    for (int r = 0; r < shape.rows; ++r) {
      for (int n = 0; n < shape.num_outputs; ++n) {
        double expected =
            NaiveOutput(x.row(r), &weight.values[static_cast<std::size_t>(n) * shape.num_inputs],
                        shape.num_inputs, format, rounds);
        if (has_bias) expected += bias[n];
        if (accumulate) expected += before.row(r)[n];
        ASSERT_NEAR(y.row(r)[n], expected, 2e-6 * shape.num_inputs + 1e-5)
            << shape.rows << " " << shape.num_outputs << " " << shape.num_inputs << " " << r << " "
            << n;
      }
      for (int i = 0; i < 5; ++i) {
        const std::size_t end = r * (shape.num_outputs + 5) + shape.num_outputs;
        ASSERT_TRUE(std::isnan(y.values[end + i])) << "wrote past the end of a row";
      }
    }
  }

  TestRows Product(const TestRows& x, const PackedMatrix& weight) {
    TestRows y(x.view.rows, weight.num_outputs());
    ops_->MatMul(x, weight, nullptr, /*accumulate=*/false, y);
    return y;
  }
};

TEST_P(MatMulTest, EqualsADoublePrecisionSum) {
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{2, 17, 3}, Shape{3, 16, 2}, Shape{5, 33, 31}, Shape{7, 64, 127},
        Shape{13, 100, 65}, Shape{24, 48, 96}, Shape{25, 250, 33}, Shape{1, 960, 576},
        Shape{6, 576, 1536}, Shape{4, 31, 1}, Shape{130, 40, 50}}) {
    for (WeightFormat format : kFloatFormats) {
      CheckShape(shape, format, /*has_bias=*/false, /*accumulate=*/false);
      CheckShape(shape, format, /*has_bias=*/true, /*accumulate=*/false);
      CheckShape(shape, format, /*has_bias=*/true, /*accumulate=*/true);
    }
  }
}

TEST_P(MatMulTest, ARowNeverDependsOnTheRowsBesideIt) {
  Random random(1);
  for (const auto& [num_outputs, num_inputs] : {std::pair{90, 577}, {200, 64}, {16, 1536}}) {
    const TestWeight weight(random, num_outputs, num_inputs);
    for (WeightFormat format : kFloatFormats) {
      const auto packed = Pack(weight.view, format);
      const TestRows x = random.NormalRows(33, num_inputs);
      TestRows alone(33, num_outputs);
      for (int r = 0; r < 33; ++r) {
        ops_->MatMul(ConstRows(x.row(r), 1, num_inputs), *packed, nullptr, false,
                     Rows(alone.row(r), 1, num_outputs));
      }
      for (int rows = 1; rows <= 33; ++rows) {
        TestRows y(rows, num_outputs);
        const int first = random.Below(34 - rows);
        ops_->MatMul(ConstRows(x.row(first), rows, num_inputs), *packed, nullptr, false, y);
        for (int r = 0; r < rows; ++r) {
          ASSERT_TRUE(SameBits(y.row(r), alone.row(first + r), num_outputs)) << rows << " " << r;
        }
      }
    }
  }
}

TEST_P(MatMulTest, PermutedRowsGivePermutedOutputs) {
  Random random(2);
  const TestWeight weight(random, 130, 96);
  const auto packed = Pack(weight.view, WeightFormat::kBFloat16);
  const TestRows x = random.NormalRows(300, 96);
  const std::vector<int> order = random.Permutation(300);
  TestRows permuted(300, 96);
  for (int r = 0; r < 300; ++r) std::copy_n(x.row(order[r]), 96, permuted.row(r));
  const TestRows y = Product(x, *packed), z = Product(permuted, *packed);
  for (int r = 0; r < 300; ++r) ASSERT_TRUE(SameBits(z.row(r), y.row(order[r]), 130));
}

TEST_P(MatMulTest, TheNumberOfThreadsChangesNothing) {
  Random random(3);
  const TestWeight weight(random, 1000, 192);
  const std::vector<float> bias = random.Normals(1000);
  for (WeightFormat format : kFloatFormats) {
    for (int rows : {1, 3, 8, 33, 200}) {
      const TestRows x = random.NormalRows(rows, 192);
      std::vector<TestRows> results;
      for (int threads = 1; threads <= 4; ++threads) {
        ThreadTeam team(threads);
        const auto ops = MakeTestedOps(team, GetParam());
        const auto packed = ops->Pack({&weight.view, 1}, format);
        results.emplace_back(rows, 1000);
        std::fill(results.back().values.begin(), results.back().values.end(), 0.25f);
        ops->MatMul(x, *packed, bias.data(), /*accumulate=*/true, results.back());
        ASSERT_TRUE(SameBits(results.back(), results.front())) << threads << " " << rows;
      }
    }
  }
}

TEST_P(MatMulTest, StridedRowsGiveTheSameOutputs) {
  Random random(4);
  const TestWeight weight(random, 70, 50);
  const auto packed = Pack(weight.view, WeightFormat::kBFloat16);
  const TestRows wide = random.NormalRows(9, 150);
  TestRows narrow(9, 50);
  for (int r = 0; r < 9; ++r) std::copy_n(wide.row(r) + 40, 50, narrow.row(r));
  TestRows y(9, 70);
  ops_->MatMul(ConstRows(wide.view.Columns(40, 50)), *packed, nullptr, false, y);
  EXPECT_TRUE(SameBits(y, Product(narrow, *packed)));
}

TEST_P(MatMulTest, NoRowsAreNoWork) {
  Random random(5);
  const TestWeight weight(random, 16, 16);
  const auto packed = Pack(weight.view, WeightFormat::kFloat32);
  ops_->MatMul(ConstRows(nullptr, 0, 16), *packed, nullptr, false, Rows(nullptr, 0, 16));
}

TEST_P(MatMulTest, ContradictingShapesThrow) {
  Random random(6);
  const TestWeight weight(random, 20, 30);
  const auto packed = Pack(weight.view, WeightFormat::kBFloat16);
  const TestRows x = random.NormalRows(2, 30), wrong_x = random.NormalRows(2, 31);
  TestRows y(2, 20), wrong_y(2, 21), more_y(3, 20);
  EXPECT_THROW(ops_->MatMul(wrong_x, *packed, nullptr, false, y), InternalError);
  EXPECT_THROW(ops_->MatMul(x, *packed, nullptr, false, wrong_y), InternalError);
  EXPECT_THROW(ops_->MatMul(x, *packed, nullptr, false, more_y), InternalError);
}

FORERUN_FOR_EVERY_ISA(MatMulTest);

}  // namespace
}  // namespace forerun
