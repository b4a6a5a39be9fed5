// What the tests of the operations share: every instruction set of this machine, random rows,
// poisoned rows.
#ifndef FORERUN_TESTS_CPP_OPS_OPS_TESTING_H_
#define FORERUN_TESTS_CPP_OPS_OPS_TESTING_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/ops/ops.h"
#include "cpp/util/simd/isa.h"
#include "cpp/util/thread_team.h"
#include "forerun/error.h"
#include "tests/cpp/ops/wide_kernels.h"
#include "tests/cpp/testing/random_floats.h"

namespace forerun {

// Owned rows. Starts out as NaN, so that an output which is not written is found.
struct TestRows {
  TestRows(int rows, int cols, int padding = 0)
      : values(static_cast<std::size_t>(rows) * (cols + padding),
               std::numeric_limits<float>::quiet_NaN()),
        view(values.data(), rows, cols, cols + padding) {}
  TestRows(TestRows&&) = default;
  TestRows(const TestRows&) = delete;

  operator Rows() { return view; }             // NOLINT(google-explicit-constructor)
  operator ConstRows() const { return view; }  // NOLINT(google-explicit-constructor)
  float* row(int r) { return view.row(r); }
  const float* row(int r) const { return view.row(r); }

  std::vector<float> values;
  Rows view;
};

class Random : public RandomFloats {
 public:
  using RandomFloats::RandomFloats;

  TestRows NormalRows(int rows, int cols, float deviation = 1.0f, int padding = 0) {
    TestRows result(rows, cols, padding);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < cols; ++c) result.row(r)[c] = Normal(deviation);
    }
    return result;
  }
};

inline bool SameBits(const TestRows& a, const TestRows& b) {
  for (int r = 0; r < a.view.rows; ++r) {
    if (!SameBits(a.row(r), b.row(r), a.view.cols)) return false;
  }
  return true;
}

inline constexpr WeightFormat kFloatFormats[] = {WeightFormat::kFloat32, WeightFormat::kBFloat16};

// A weight in memory and its view.
struct TestWeight {
  TestWeight(Random& random, int num_outputs, int num_inputs)
      : values(random.Normals(static_cast<std::size_t>(num_outputs) * num_inputs)),
        view{values.data(), DType::kFloat32, {num_outputs, num_inputs}} {}

  std::vector<float> values;
  TensorView view;
};

// Every instruction set of this machine, and "wide": the portable one, grouped as the widest is.
inline std::vector<std::string> TestedIsas() {
  std::vector<std::string> names;
  for (Isa isa : AvailableIsas()) names.emplace_back(Name(isa));
  names.emplace_back("wide");
  return names;
}

inline std::unique_ptr<CpuOps> MakeTestedOps(ThreadTeam& team, const std::string& isa) {
  if (isa != "wide") return std::make_unique<CpuOps>(team, FindIsa(isa));
  return std::make_unique<CpuOps>(team, isa, wide_test::kKernels, IntegerKernelsOf(Isa::kPortable));
}

// Whether products of bfloat16 weights round their activations.
inline bool RoundsActivations(const std::string& isa) {
  return isa == "avx512bf16" || isa == "wide";
}

// The parameter is an instruction set.
class OpsTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<PackedMatrix> Pack(const TensorView& source, WeightFormat format) {
    return ops_->Pack({&source, 1}, format);
  }

  ThreadTeam team_{2};
  std::unique_ptr<CpuOps> ops_ = MakeTestedOps(team_, GetParam());
};

inline std::string IsaName(const ::testing::TestParamInfo<std::string>& param) {
  return param.param;
}

#define FORERUN_FOR_EVERY_ISA(suite) \
  INSTANTIATE_TEST_SUITE_P(Isas, suite, ::testing::ValuesIn(TestedIsas()), IsaName)

}  // namespace forerun

#endif  // FORERUN_TESTS_CPP_OPS_OPS_TESTING_H_
