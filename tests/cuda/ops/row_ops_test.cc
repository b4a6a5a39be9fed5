#include <functional>
#include <string>
#include <vector>

#include "cuda/ops/cuda_ops.h"
#include "forerun/error.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/ops/gpu_rows.h"

namespace forerun::cuda {
namespace {

using forerun::testing::NumExamples;

double Activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kSigmoid:
      break;
  }
  return 1.0 / (1.0 + std::exp(-x));
}
constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu,
                                       Activation::kSigmoid};

class RowOpsTest : public ::testing::Test {
 protected:
  GpuRows Upload(const HostRows& rows, int padding = 0) { return {ops_.memory(), rows, padding}; }

  CudaOps ops_;
};

// What each operation gives for 200 random shapes, in double precision.
TEST_F(RowOpsTest, ElementsAgreeWithDoublePrecision) {
  Random random(1);
  for (int i = 0; i < NumExamples(60, 200); ++i) {
    const int rows = random.Between(1, 20), cols = random.Between(1, 70);
    const HostRows x(random, rows, 2 * cols, 2.0f), y(random, rows, cols);
    const Activation activation = kActivations[i % 4];
    const FloatVector bias(ops_.memory(), std::span(y.row(0), cols));
    const float cap = 3.0f;

    GpuRows gated(ops_.memory(), rows, cols, 2), activated(ops_.memory(), rows, cols, 1);
    GpuRows added = Upload(y, 1), scaled = Upload(y), capped = Upload(y), zeroed = Upload(y, 3);
    GpuRows copied(ops_.memory(), rows, cols, 2);
    const GpuRows both = Upload(x, 1);
    ops_.GatedActivation(both, activation, gated);
    ops_.Activate(both.view().Columns(0, cols), i % 2 == 0 ? bias.data() : nullptr, activation,
                  activated);
    ops_.Add(both.view().Columns(cols, cols), added);
    ops_.Scale(-0.7f, scaled);
    ops_.SoftCap(capped, cap);
    ops_.Zero(zeroed);
    ops_.Copy(both.view().Columns(0, cols), copied);
    const HostRows results[] = {gated.Download(),  activated.Download(), added.Download(),
                                scaled.Download(), capped.Download(),    zeroed.Download(),
                                copied.Download()};
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < cols; ++c) {
        const double first = x.row(r)[c], second = x.row(r)[cols + c], own = y.row(r)[c];
        const double biased = i % 2 == 0 ? x.row(r)[c] + y.row(0)[c] : x.row(r)[c];
        const double expected[] = {Activated(activation, first) * second,
                                   Activated(activation, biased),
                                   own + second,
                                   own * -0.7f,
                                   cap * std::tanh(own / cap),
                                   0.0,
                                   first};
        for (int op = 0; op < 7; ++op) {
          ASSERT_NEAR(results[op].row(r)[c], expected[op], 2e-6 * std::abs(expected[op]) + 1e-6)
              << i << " " << op;
        }
      }
    }
  }
}

TEST_F(RowOpsTest, NormsAgreeWithDoublePrecision) {
  Random random(2);
  for (int i = 0; i < NumExamples(60, 200); ++i) {
    const int rows = random.Between(1, 9), group = random.Between(1, 700);
    const int cols = group * random.Between(1, 3);
    const HostRows x(random, rows, cols);
    const std::vector<float> weight = random.Normals(group);
    const FloatVector on_device(ops_.memory(), weight);
    GpuRows out = Upload(x, i % 3);
    ops_.RmsNorm(out, on_device.data(), group, 1e-5f, out);
    const HostRows normed = out.Download();
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < cols; ++c) {
        double squares = 0;
        for (int k = c / group * group; k < c / group * group + group; ++k) {
          squares += double{x.row(r)[k]} * x.row(r)[k];
        }
        const double expected =
            x.row(r)[c] / std::sqrt(squares / group + 1e-5f) * weight[c % group];
        ASSERT_NEAR(normed.row(r)[c], expected, 2e-6 * std::abs(expected) + 1e-9);
      }
    }
  }
}

TEST_F(RowOpsTest, ARowsBitsDependOnTheRowAlone) {
  Random random(3);
  const HostRows x(random, 33, 300);
  const FloatVector weight(ops_.memory(), random.Normals(100));
  const auto run = [&](int begin, int count) {
    GpuRows rows = Upload(x.Slice(begin, count));
    ops_.RmsNorm(rows, weight.data(), 100, 1e-5f, rows);
    ops_.Activate(rows, nullptr, Activation::kGeluTanh, rows);
    return rows.Download();
  };
  for (int count : {2, 7, 33}) {
    const HostRows together = run(33 - count, count);
    for (int r = 0; r < count; ++r) {
      ASSERT_TRUE(SameBits(together.row(r), run(33 - count + r, 1).row(0), x.cols));
    }
  }
}

TEST_F(RowOpsTest, RowsAreGatheredScatteredAndMovedInOrder) {
  Random random(4);
  for (int i = 0; i < 100; ++i) {
    const int cols = random.Between(1, 40), num_rows = random.Between(1, 30);
    const HostRows x(random, 30, cols), before(random, 30, cols);
    std::vector<std::int32_t> sources(num_rows);
    for (std::int32_t& source : sources) source = random.Between(0, 29);
    std::vector<KvMove> moves(random.Between(0, 20));
    for (KvMove& move : moves) move = {random.Between(0, 29), random.Between(0, 29)};

    const std::vector<TokenId> tokens(num_rows);
    const ForwardRows& rows = ops_.Begin({.tokens = tokens, .sources = sources});
    GpuRows gathered(ops_.memory(), num_rows, cols, 1), scattered = Upload(before, 2);
    GpuRows moved = Upload(x, 1);
    ops_.GatherRows(Upload(x), rows, RowIndices::kSources, gathered);
    ops_.ScatterRows(Upload(x.Slice(0, num_rows)), rows, RowIndices::kSources, scattered);
    ops_.MoveRows(moves, moved);

    HostRows expected_scattered = before, expected_moved = x;
    const HostRows out = gathered.Download();
    for (int r = 0; r < num_rows; ++r) {
      ASSERT_TRUE(SameBits(out.row(r), x.row(sources[r]), cols));
      std::copy_n(x.row(r), cols, expected_scattered.row(sources[r]));
    }
    for (const KvMove& move : moves) {
      std::copy_n(expected_moved.row(static_cast<int>(move.from)), cols,
                  expected_moved.row(static_cast<int>(move.to)));
    }
    ASSERT_EQ(scattered.Download().values, expected_scattered.values);
    ASSERT_EQ(moved.Download().values, expected_moved.values);
  }
}

TEST_F(RowOpsTest, WhatDoesNotFitIsNamed) {
  GpuRows x(ops_.memory(), 2, 8), y(ops_.memory(), 3, 8);
  EXPECT_THROW(ops_.Add(x, y), InternalError);
  EXPECT_THROW(ops_.Copy(x, y), InternalError);
  EXPECT_THROW(ops_.RmsNorm(x, nullptr, 3, 0.0f, x), InternalError);
  const KvMove move = {0, 2};
  EXPECT_THROW(ops_.MoveRows({&move, 1}, x), InternalError);
}

}  // namespace
}  // namespace forerun::cuda
