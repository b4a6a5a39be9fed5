#include <cmath>
#include <functional>

#include "tests/cpp/ops/ops_testing.h"

namespace forerun {
namespace {

class RowOpsTest : public OpsTest {
 protected:
  // `op` on all rows at once must give every row what it gives that row alone, for 1..33 rows and
  // enough to be split over threads.
  void CheckRowsAreIndependent(int cols_in, int cols_out,
                               const std::function<void(ConstRows, Rows)>& op) {
    Random random(cols_in);
    const int most = 33 + 40000 / cols_in;
    const TestRows x = random.NormalRows(most, cols_in);
    TestRows alone(most, cols_out);
    for (int r = 0; r < most; ++r) {
      op(ConstRows(x.row(r), 1, cols_in), Rows(alone.row(r), 1, cols_out));
    }
    for (int rows = 1; rows <= most; rows = rows < 33 ? rows + 1 : most + (rows == most)) {
      TestRows out(rows, cols_out, /*padding=*/2);
      op(ConstRows(x.row(most - rows), rows, cols_in), out);
      for (int r = 0; r < rows; ++r) {
        ASSERT_TRUE(SameBits(out.row(r), alone.row(most - rows + r), cols_out)) << rows << " " << r;
      }
    }
  }

  // A pass whose rows have these sources.
  const ForwardRows& Gathering(const std::vector<std::int32_t>& sources) {
    return ops_->Begin({.tokens = {}, .sources = sources});
  }

  std::vector<float> Activate(Activation activation, const std::vector<float>& gates) {
    const int n = static_cast<int>(gates.size());
    std::vector<float> gate_up = gates;
    gate_up.resize(2 * n, 1.0f);
    std::vector<float> out(n, NAN);
    ops_->GatedActivation(ConstRows(gate_up.data(), 1, 2 * n), activation, Rows(out.data(), 1, n));
    return out;
  }
};

double Defined(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kSigmoid:
      return 1.0 / (1.0 + std::exp(-x));
    case Activation::kGeluTanh:
      break;
  }
  return NAN;
}

// From far below to far above zero, denser near it.
std::vector<float> Sweep() {
  std::vector<float> values = {0.0f, -0.0f, 1e-30f, -1e-30f, 1e30f, -1e30f, 88.0f, -88.0f, 100.0f};
  for (int i = -4000; i <= 4000; ++i) {
    values.push_back(0.005f * i);
    values.push_back(1e-4f * i);
  }
  return values;
}

TEST_P(RowOpsTest, SiluMatchesItsDefinition) {
  const std::vector<float> gates = Sweep();
  const std::vector<float> out = Activate(Activation::kSilu, gates);
  for (std::size_t i = 0; i < gates.size(); ++i) {
    const double x = gates[i], expected = x / (1.0 + std::exp(-x));
    ASSERT_NEAR(out[i], expected, 4e-7 * std::abs(expected) + 1e-8) << x;
  }
}

TEST_P(RowOpsTest, GeluTanhMatchesItsDefinition) {
  const std::vector<float> gates = Sweep();
  const std::vector<float> out = Activate(Activation::kGeluTanh, gates);
  for (std::size_t i = 0; i < gates.size(); ++i) {
    const double x = gates[i];
    const double inner = std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
    ASSERT_NEAR(out[i], 0.5 * x * (1.0 + std::tanh(inner)), 3e-7 * std::abs(x)) << x;
  }
}

TEST_P(RowOpsTest, GeluMatchesItsDefinition) {
  const std::vector<float> gates = Sweep();
  const std::vector<float> out = Activate(Activation::kGelu, gates);
  for (std::size_t i = 0; i < gates.size(); ++i) {
    const double x = gates[i];
    ASSERT_NEAR(out[i], 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))), 2e-7 * std::abs(x)) << x;
  }
}

TEST_P(RowOpsTest, ANaNGateStaysANaN) {
  for (Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu}) {
    const std::vector<float> out = Activate(activation, {NAN, 1.0f, NAN});
    EXPECT_TRUE(std::isnan(out[0]) && std::isnan(out[2]));
    EXPECT_FALSE(std::isnan(out[1]));
  }
}

TEST_P(RowOpsTest, GatedActivationMultipliesTheUpperHalf) {
  Random random(3);
  for (int cols : {1, 7, 16, 40, 1536}) {
    const TestRows gate_up = random.NormalRows(3, 2 * cols, 2.0f, /*padding=*/1);
    TestRows out(3, cols, /*padding=*/2);
    ops_->GatedActivation(gate_up, Activation::kSilu, out);
    for (int r = 0; r < 3; ++r) {
      for (int i = 0; i < cols; ++i) {
        const double x = gate_up.row(r)[i], up = gate_up.row(r)[cols + i];
        const double expected = x / (1.0 + std::exp(-x)) * up;
        ASSERT_NEAR(out.row(r)[i], expected, 5e-7 * std::abs(expected));
      }
    }
  }
}

TEST_P(RowOpsTest, GatedActivationOfARowDependsOnItAlone) {
  CheckRowsAreIndependent(2 * 70, 70, [&](ConstRows x, Rows out) {
    ops_->GatedActivation(x, Activation::kGeluTanh, out);
  });
}

TEST_P(RowOpsTest, RmsNormMatchesItsDefinition) {
  Random random(4);
  for (const auto& [cols, group] : {std::pair{576, 576}, {96, 8}, {64, 64}, {100, 25}, {3, 3}}) {
    const TestRows x = random.NormalRows(4, cols, 3.0f, /*padding=*/3);
    const std::vector<float> weight = random.Normals(group);
    TestRows out(4, cols, /*padding=*/1);
    ops_->RmsNorm(x, weight.data(), group, 1e-5f, out);
    for (int r = 0; r < 4; ++r) {
      for (int begin = 0; begin < cols; begin += group) {
        double squares = 0;
        for (int i = 0; i < group; ++i) squares += std::pow(double{x.row(r)[begin + i]}, 2);
        for (int i = 0; i < group; ++i) {
          const double expected =
              x.row(r)[begin + i] / std::sqrt(squares / group + 1e-5) * weight[i];
          ASSERT_NEAR(out.row(r)[begin + i], expected, 1e-6 * std::abs(expected) + 1e-9);
        }
      }
    }
  }
}

TEST_P(RowOpsTest, RmsNormInPlaceGivesTheSame) {
  Random random(5);
  TestRows x = random.NormalRows(5, 90);
  const std::vector<float> weight = random.Normals(90);
  TestRows out(5, 90);
  ops_->RmsNorm(x, weight.data(), 90, 1e-6f, out);
  ops_->RmsNorm(x, weight.data(), 90, 1e-6f, x);
  EXPECT_TRUE(SameBits(x, out));
}

TEST_P(RowOpsTest, RmsNormOfARowDependsOnItAlone) {
  Random random(6);
  const std::vector<float> weight = random.Normals(577);
  CheckRowsAreIndependent(
      577, 577, [&](ConstRows x, Rows out) { ops_->RmsNorm(x, weight.data(), 577, 1e-5f, out); });
}

TEST_P(RowOpsTest, RopeRotatesPairsOfHalves) {
  Random random(7);
  for (int head_dim : {2, 8, 32, 64, 80, 256}) {
    constexpr int kHeads = 3;
    const std::vector<float> table = random.Normals(10 * head_dim);
    const TestRows before = random.NormalRows(4, kHeads * head_dim, 1.0f, /*padding=*/9);
    TestRows x(4, kHeads * head_dim, /*padding=*/9);
    x.values = before.values;
    const std::vector<std::int32_t> positions = {0, 9, 3, 3};
    ops_->Rope(x, head_dim, positions, table.data());
    const int half = head_dim / 2;
    for (int r = 0; r < 4; ++r) {
      const float* cosine = table.data() + positions[r] * head_dim;
      for (int h = 0; h < kHeads; ++h) {
        const float* from = before.row(r) + h * head_dim;
        const float* to = x.row(r) + h * head_dim;
        for (int i = 0; i < half; ++i) {
          const double c = cosine[i], s = cosine[half + i];
          ASSERT_NEAR(to[i], from[i] * c - from[half + i] * s, 2e-6);
          ASSERT_NEAR(to[half + i], from[half + i] * c + from[i] * s, 2e-6);
        }
      }
    }
  }
}

TEST_P(RowOpsTest, RopeOfARowDependsOnItAlone) {
  Random random(8);
  const std::vector<float> table = random.Normals(5 * 24);
  CheckRowsAreIndependent(48, 48, [&](ConstRows x, Rows out) {
    for (int r = 0; r < x.rows; ++r) std::copy_n(x.row(r), x.cols, out.row(r));
    const std::vector<std::int32_t> positions(x.rows, 4);
    ops_->Rope(out, 24, positions, table.data());
  });
}

TEST_P(RowOpsTest, SoftCapMatchesItsDefinition) {
  std::vector<float> values = Sweep();
  const std::vector<float> before = values;
  const int n = static_cast<int>(values.size());
  for (float cap : {30.0f, 50.0f, 1.0f}) {
    values = before;
    ops_->SoftCap(Rows(values.data(), 1, n), cap);
    for (int i = 0; i < n; ++i) {
      const double expected = cap * std::tanh(double{before[i]} / cap);
      ASSERT_NEAR(values[i], expected, 4e-7 * std::abs(expected) + 1e-37) << before[i];
    }
  }
}

TEST_P(RowOpsTest, SoftCapOfARowDependsOnItAlone) {
  CheckRowsAreIndependent(3001, 3001, [&](ConstRows x, Rows out) {
    for (int r = 0; r < x.rows; ++r) std::copy_n(x.row(r), x.cols, out.row(r));
    ops_->SoftCap(out, 2.0f);
  });
}

TEST_P(RowOpsTest, AddSumsInPlace) {
  Random random(9);
  const TestRows y = random.NormalRows(60, 701, 1.0f, /*padding=*/3);
  const TestRows before = random.NormalRows(60, 701);
  TestRows x(60, 701, /*padding=*/1);
  for (int r = 0; r < 60; ++r) std::copy_n(before.row(r), 701, x.row(r));
  ops_->Add(y, x);
  for (int r = 0; r < 60; ++r) {
    for (int i = 0; i < 701; ++i) ASSERT_EQ(x.row(r)[i], before.row(r)[i] + y.row(r)[i]);
  }
}

TEST_P(RowOpsTest, ScaleMultipliesInPlace) {
  Random random(13);
  const TestRows before = random.NormalRows(3, 701);
  TestRows x(3, 701, /*padding=*/1);
  for (int r = 0; r < 3; ++r) std::copy_n(before.row(r), 701, x.row(r));
  ops_->Scale(0.3f, x);
  for (int r = 0; r < 3; ++r) {
    for (int i = 0; i < 701; ++i) ASSERT_EQ(x.row(r)[i], before.row(r)[i] * 0.3f);
  }
}

TEST_P(RowOpsTest, GatherRowsCopies) {
  Random random(10);
  const TestRows x = random.NormalRows(7, 33, 1.0f, /*padding=*/2);
  const std::vector<std::int32_t> rows = {6, 0, 0, 3};
  TestRows out(4, 33, /*padding=*/5);
  ops_->GatherRows(x, Gathering(rows), RowIndices::kSources, out);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(SameBits(out.row(i), x.row(rows[i]), 33));
}

TEST_P(RowOpsTest, ActivateAddsTheBiasFirst) {
  Random random(11);
  for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kSigmoid}) {
    for (int cols : {1, 19, 700}) {
      const TestRows x = random.NormalRows(5, cols, 2.0f, /*padding=*/2);
      const TestRows bias = random.NormalRows(1, cols);
      TestRows out(5, cols, /*padding=*/1);
      ops_->Activate(x, bias.row(0), activation, out);
      TestRows plain(5, cols);
      ops_->Activate(x, nullptr, activation, plain);
      for (int r = 0; r < 5; ++r) {
        for (int i = 0; i < cols; ++i) {
          ASSERT_NEAR(out.row(r)[i], Defined(activation, x.row(r)[i] + bias.row(0)[i]), 2e-6);
          ASSERT_NEAR(plain.row(r)[i], Defined(activation, x.row(r)[i]), 2e-6);
        }
      }
    }
  }
}

TEST_P(RowOpsTest, ScatterRowsCopies) {
  Random random(12);
  const TestRows x = random.NormalRows(3, 33, 1.0f, /*padding=*/2);
  const std::vector<std::int32_t> rows = {6, 0, 3};
  TestRows out(7, 33, /*padding=*/5);
  ops_->ScatterRows(x, Gathering(rows), RowIndices::kSources, out);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(SameBits(out.row(rows[i]), x.row(i), 33));
}

TEST_P(RowOpsTest, CopyAndZeroKeepTheirColumns) {
  Random random(14);
  const TestRows x = random.NormalRows(3, 33, 1.0f, /*padding=*/2);
  TestRows out(3, 33, /*padding=*/5);
  ops_->Copy(x, out);
  EXPECT_TRUE(SameBits(out, x));
  ops_->Zero(out.view.Columns(4, 7));
  for (int r = 0; r < 3; ++r) {
    for (int c = 0; c < 38; ++c) {
      const float value = out.view.row(r)[c];
      if (c < 33) {
        ASSERT_EQ(value, c >= 4 && c < 11 ? 0.0f : x.row(r)[c]);
      } else {
        ASSERT_TRUE(std::isnan(value));
      }
    }
  }
}

// A path's moves overlap: the second reads what the first has left.
TEST_P(RowOpsTest, RowsMoveOneAfterTheOther) {
  Random random(15);
  const TestRows before = random.NormalRows(6, 33);
  TestRows x(6, 33, /*padding=*/1);
  ops_->Copy(before, x);
  const std::vector<KvMove> moves = {{2, 1}, {4, 2}, {2, 3}, {5, 5}};
  ops_->MoveRows(moves, x);
  const int sources[] = {0, 2, 4, 4, 4, 5};
  for (int r = 0; r < 6; ++r) EXPECT_TRUE(SameBits(x.row(r), before.row(sources[r]), 33)) << r;
  EXPECT_THROW(ops_->MoveRows(std::vector<KvMove>{{0, 6}}, x), InternalError);
  EXPECT_THROW(ops_->MoveRows(std::vector<KvMove>{{-1, 0}}, x), InternalError);
}

TEST_P(RowOpsTest, ContradictingShapesThrow) {
  TestRows a(2, 12), b(2, 11), c(3, 12), half(2, 6);
  const std::vector<float> weight(12, 1.0f);
  const std::vector<std::int32_t> two = {0, 1}, beyond = {0, 2}, negative = {0, -1}, one = {0};
  EXPECT_THROW(ops_->Add(b, a), InternalError);
  EXPECT_THROW(ops_->Add(c, a), InternalError);
  EXPECT_THROW(ops_->RmsNorm(a, weight.data(), 5, 1e-5f, a), InternalError);
  EXPECT_THROW(ops_->RmsNorm(a, nullptr, 12, 1e-5f, a), InternalError);
  EXPECT_THROW(ops_->RmsNorm(a, weight.data(), 12, 1e-5f, c), InternalError);
  EXPECT_THROW(ops_->Rope(a, 5, two, weight.data()), InternalError);
  EXPECT_THROW(ops_->Rope(a, 8, two, weight.data()), InternalError);
  EXPECT_THROW(ops_->Rope(a, 12, one, weight.data()), InternalError);
  EXPECT_THROW(ops_->Rope(a, 12, negative, weight.data()), InternalError);
  EXPECT_THROW(ops_->GatedActivation(a, Activation::kSilu, b), InternalError);
  EXPECT_THROW(ops_->GatedActivation(c, Activation::kSilu, half), InternalError);
  EXPECT_THROW(ops_->SoftCap(a, 0.0f), InternalError);
  EXPECT_THROW(ops_->GatherRows(a, Gathering(beyond), RowIndices::kSources, a), InternalError);
  EXPECT_THROW(ops_->GatherRows(a, Gathering(one), RowIndices::kSources, c), InternalError);
  EXPECT_THROW(ops_->ScatterRows(a, Gathering(beyond), RowIndices::kSources, a), InternalError);
  EXPECT_THROW(ops_->ScatterRows(a, Gathering(one), RowIndices::kSources, c), InternalError);
  EXPECT_THROW(ops_->Copy(a, b), InternalError);
  EXPECT_THROW(ops_->Activate(a, nullptr, Activation::kSilu, b), InternalError);
}

FORERUN_FOR_EVERY_ISA(RowOpsTest);

}  // namespace
}  // namespace forerun
