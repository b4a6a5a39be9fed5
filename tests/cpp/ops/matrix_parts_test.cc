// Matrices whose parts differ in format.
#include "tests/cpp/ops/integers_testing.h"

namespace forerun {
namespace {

class MatrixPartsTest : public OpsTest {
 protected:
  // Sources of every format, in an order that is not that of the formats, some in two pieces.
  void MakeSources(int num_inputs) {
    std::vector<WeightFormat> formats(std::begin(kWeightFormats), std::end(kWeightFormats));
    for (int i : random_.Permutation(kNumWeightFormats)) {
      const int pieces = 1 + random_.Below(2);
      for (int piece = 0; piece < pieces; ++piece) {
        const int num_outputs = 1 + random_.Below(40);
        if (HasIntegers(formats[i])) {
          integers_.push_back(std::make_unique<TestIntegers>(random_, formats[i], num_outputs,
                                                             num_inputs, /*exponent=*/-7));
          sources_.emplace_back(integers_.back()->view);
        } else {
          floats_.push_back(std::make_unique<TestWeight>(random_, num_outputs, num_inputs));
          sources_.emplace_back(floats_.back()->view, formats[i]);
        }
      }
    }
    whole_ = ops_->Pack(sources_);
    for (const WeightSource& source : sources_) alone_.push_back(ops_->Pack({&source, 1}));
  }

  Random random_{61};
  std::vector<std::unique_ptr<TestIntegers>> integers_;
  std::vector<std::unique_ptr<TestWeight>> floats_;
  std::vector<WeightSource> sources_;
  std::unique_ptr<PackedMatrix> whole_;
  std::vector<std::unique_ptr<PackedMatrix>> alone_;
};

TEST_P(MatrixPartsTest, AProductIsThePartsProductsSideBySide) {
  MakeSources(256);
  const std::vector<float> bias = random_.Normals(whole_->num_outputs());
  for (int rows : {1, 5, 9, 40, 300}) {
    const TestRows x = random_.NormalRows(rows, 256, 1.0f, /*padding=*/3);
    for (const bool accumulate : {false, true}) {
      TestRows before = random_.NormalRows(rows, whole_->num_outputs());
      TestRows y(rows, whole_->num_outputs(), /*padding=*/2);
      ops_->Copy(before, y);
      ops_->MatMul(x, *whole_, accumulate ? bias.data() : nullptr, accumulate, y);
      int begin = 0;
      for (const auto& part : alone_) {
        const Rows expected = before.view.Columns(begin, part->num_outputs());
        ops_->MatMul(x, *part, accumulate ? bias.data() + begin : nullptr, accumulate, expected);
        begin += part->num_outputs();
      }
      ASSERT_EQ(begin, whole_->num_outputs());
      ASSERT_TRUE(SameBits(before, y)) << rows << " " << accumulate;
    }
  }
}

TEST_P(MatrixPartsTest, ARowNeverDependsOnTheRowsBesideIt) {
  MakeSources(256);
  const TestRows x = random_.NormalRows(40, 256);
  TestRows all(40, whole_->num_outputs());
  ops_->MatMul(x, *whole_, nullptr, /*accumulate=*/false, all);
  for (int row : {0, 17, 39}) {
    TestRows one(1, whole_->num_outputs());
    ops_->MatMul(x.view.Slice(row, 1), *whole_, nullptr, /*accumulate=*/false, one);
    ASSERT_TRUE(SameBits(one.row(0), all.row(row), whole_->num_outputs())) << row;
  }
}

TEST_P(MatrixPartsTest, AnEmbeddingFindsTheRowsOfEveryPart) {
  MakeSources(512);
  const TestRows rows = UnpackAll(*ops_, *whole_);
  int begin = 0;
  for (const auto& part : alone_) {
    const TestRows expected = UnpackAll(*ops_, *part);
    for (int n = 0; n < part->num_outputs(); ++n) {
      ASSERT_TRUE(SameBits(rows.row(begin + n), expected.row(n), 512)) << begin << " " << n;
    }
    begin += part->num_outputs();
  }
}

// Neighbours of one format share tiles: no output of theirs is padding.
TEST_P(MatrixPartsTest, NeighboursOfOneFormatArePackedAsOne) {
  const TestIntegers a(random_, WeightFormat::kInt4, 9, 64), b(random_, WeightFormat::kInt4, 7, 64);
  const std::vector<WeightSource> sources = {a.view, b.view};
  EXPECT_EQ(ops_->Pack(sources)->num_bytes(), 16 * 64 * 4.5 / 8);
}

TEST_P(MatrixPartsTest, SourcesOfDifferentWidthsThrow) {
  const TestIntegers a(random_, WeightFormat::kInt4, 9, 64);
  const TestWeight b(random_, 7, 65);
  const std::vector<WeightSource> sources = {a.view, {b.view, WeightFormat::kFloat32}};
  EXPECT_THROW(ops_->Pack(sources), InternalError);
}

FORERUN_FOR_EVERY_ISA(MatrixPartsTest);

}  // namespace
}  // namespace forerun
