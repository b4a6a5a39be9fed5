// Fused operations give the bits of their parts, and keep within what was reserved.
#include <algorithm>

#include "tests/cpp/ops/attention_testing.h"

namespace forerun {
namespace {

class FusedOpsTest : public OpsTest {
 protected:
  Random random_{41};
};

TEST_P(FusedOpsTest, NormMatMulIsTheNormThenTheProduct) {
  for (WeightFormat format : kWeightFormats) {
    if (!TakesFloats(format)) continue;
    for (const auto& [rows, inputs, outputs] :
         {std::tuple{1, 33, 20}, {9, 64, 40}, {300, 48, 17}}) {
      const TestWeight source(random_, outputs, inputs);
      const auto weight = Pack(source.view, format);
      const std::vector<float> norm = random_.Normals(inputs), bias = random_.Normals(outputs);
      const TestRows x = random_.NormalRows(rows, inputs, 2.0f, /*padding=*/3);
      for (const float* added : {static_cast<const float*>(nullptr), bias.data()}) {
        TestRows normed(rows, inputs), expected(rows, outputs), out(rows, outputs, /*padding=*/2);
        ops_->RmsNorm(x, norm.data(), inputs, 1e-5f, normed);
        ops_->MatMul(normed, *weight, added, /*accumulate=*/false, expected);
        ops_->NormMatMul(x, {norm.data(), 1e-5f}, *weight, added, out);
        EXPECT_TRUE(SameBits(out, expected)) << rows;
      }
    }
  }
}

// 256 rows are a slice: a row has the same bits in every slice, alone, and in place.
TEST_P(FusedOpsTest, GatedMatMulIsItsPartsInSlicesOfAnySize) {
  constexpr int kHidden = 24, kGated = 36;
  for (WeightFormat format : kWeightFormats) {
    if (!TakesFloats(format)) continue;
    const TestWeight up_source(random_, 2 * kGated, kHidden), down_source(random_, kHidden, kGated);
    const auto gate_up = Pack(up_source.view, format), down = Pack(down_source.view, format);
    const std::vector<float> norm = random_.Normals(kHidden), up_bias = random_.Normals(2 * kGated),
                             down_bias = random_.Normals(kHidden);
    const NormWeight norm_weight = {norm.data(), 1e-5f};
    const GatedMlp mlp = {*gate_up, up_bias.data(), Activation::kSilu, *down, down_bias.data()};
    for (int rows : {1, 255, 256, 257, 600}) {
      const TestRows x = random_.NormalRows(rows, kHidden);
      TestRows normed(rows, kHidden), wide(rows, 2 * kGated), activated(rows, kGated);
      TestRows product(rows, kHidden), sum(rows, kHidden), out(rows, kHidden, /*padding=*/1);
      ops_->RmsNorm(x, norm.data(), kHidden, 1e-5f, normed);
      ops_->MatMul(normed, *gate_up, up_bias.data(), /*accumulate=*/false, wide);
      ops_->GatedActivation(wide, Activation::kSilu, activated);
      ops_->MatMul(activated, *down, down_bias.data(), /*accumulate=*/false, product);
      ops_->Copy(x, sum);
      ops_->MatMul(activated, *down, down_bias.data(), /*accumulate=*/true, sum);

      ops_->GatedMatMul(x, norm_weight, mlp, /*accumulate=*/false, out);
      EXPECT_TRUE(SameBits(out, product)) << rows;
      TestRows in_place(rows, kHidden);
      ops_->Copy(x, in_place);
      ops_->GatedMatMul(in_place, norm_weight, mlp, /*accumulate=*/true, in_place);
      EXPECT_TRUE(SameBits(in_place, sum)) << rows;
      TestRows last(1, kHidden);
      ops_->GatedMatMul(x.view.Slice(rows - 1, 1), norm_weight, mlp, /*accumulate=*/false, last);
      EXPECT_TRUE(SameBits(last.row(0), product.row(rows - 1), kHidden)) << rows;
    }
  }
}

TEST_P(FusedOpsTest, RotateAndStoreIsNormsThenRotationThenStore) {
  const KvLayout layout{2, 2, 8, 16, 4};
  constexpr int kHeads = 4, kRows = 7, kQuery = kHeads * 8, kKv = 2 * 8;
  const std::vector<BlockId> blocks = {2, 0};
  const std::vector<TokenId> tokens(kRows);
  const SequenceRows sequence{0, kRows, 13, blocks};
  const std::vector<float> query_norm = random_.Normals(8), key_norm = random_.Normals(8),
                           table = random_.Normals(32 * 8);
  const QkNorms all_norms[] = {{}, {query_norm.data(), key_norm.data(), 1e-6f}};
  for (const QkNorms& norms : all_norms) {
    const TestRows before = random_.NormalRows(kRows, kQuery + 2 * kKv);
    TestRows qkv(kRows, kQuery + 2 * kKv), expected(kRows, kQuery + 2 * kKv);
    ops_->Copy(before, qkv);
    ops_->Copy(before, expected);
    const auto cache = ops_->MakeKvCache(layout, 3), expected_cache = ops_->MakeKvCache(layout, 3);
    const ForwardRows& rows =
        ops_->Begin({.tokens = tokens, .cache = cache.get(), .sequences = {&sequence, 1}});
    ops_->RotateAndStore(qkv, norms, rows, table.data(), 1);

    const Rows query = expected.view.Columns(0, kQuery), key = expected.view.Columns(kQuery, kKv);
    if (norms.query != nullptr) {
      ops_->RmsNorm(query, norms.query, 8, norms.eps, query);
      ops_->RmsNorm(key, norms.key, 8, norms.eps, key);
    }
    ops_->Rope(query, 8, rows.positions(), table.data());
    ops_->Rope(key, 8, rows.positions(), table.data());
    ops_->StoreKv(key, expected.view.Columns(kQuery + kKv, kKv), {&sequence, 1}, 1,
                  *expected_cache);
    EXPECT_TRUE(SameBits(qkv, expected));
    const auto& got = static_cast<const CpuKvCache&>(*cache);
    const auto& wanted = static_cast<const CpuKvCache&>(*expected_cache);
    for (int slot = 13; slot < 13 + kRows; ++slot) {
      for (int head = 0; head < 2; ++head) {
        const KvOffsets at = got.OffsetsOf(blocks[slot / 16] * 16 + slot % 16, head);
        const auto read = [&](const CpuKvCache& kv, std::int64_t offset, bool is_key) {
          return reinterpret_cast<const float*>(is_key ? kv.keys(1) : kv.values(1))[offset];
        };
        for (int i = 0; i < 8; ++i) {
          ASSERT_EQ(read(got, at.key + i * 16, true), read(wanted, at.key + i * 16, true)) << slot;
          ASSERT_EQ(read(got, at.value + i, false), read(wanted, at.value + i, false)) << slot;
        }
      }
    }
  }
}

TEST_P(FusedOpsTest, ContradictingShapesThrow) {
  const TestWeight source(random_, 16, 12), down_source(random_, 12, 8);
  const auto weight = Pack(source.view, WeightFormat::kFloat32);
  const auto down = Pack(down_source.view, WeightFormat::kFloat32);
  const std::vector<float> norm(12, 1.0f), table(16 * 8, 1.0f);
  TestRows x(2, 12), narrow(2, 11), more(3, 12), y(2, 16);
  const GatedMlp mlp = {*weight, nullptr, Activation::kSilu, *down, nullptr};
  EXPECT_THROW(ops_->NormMatMul(narrow, {norm.data(), 1e-5f}, *weight, nullptr, y), InternalError);
  EXPECT_THROW(ops_->NormMatMul(x, {nullptr, 1e-5f}, *weight, nullptr, y), InternalError);
  EXPECT_THROW(ops_->GatedMatMul(x, {norm.data(), 1e-5f}, mlp, false, more), InternalError);
  EXPECT_THROW(ops_->GatedMatMul(x, {norm.data(), 1e-5f}, mlp, false, narrow), InternalError);

  const auto cache = ops_->MakeKvCache({1, 1, 8, 16, 4}, 1);
  const std::vector<BlockId> blocks = {0};
  const std::vector<TokenId> tokens(2);
  const SequenceRows sequence{0, 2, 0, blocks};
  TestRows qkv(2, 24), too_narrow(2, 16), too_many(3, 24);
  const auto rotate = [&](Rows rows, KvCache* kv, int layer) {
    ops_->RotateAndStore(rows, {},
                         ops_->Begin({.tokens = tokens, .cache = kv, .sequences = {&sequence, 1}}),
                         table.data(), layer);
  };
  ops_->Zero(qkv);
  EXPECT_NO_THROW(rotate(qkv, cache.get(), 0));
  EXPECT_THROW(rotate(qkv, nullptr, 0), InternalError);
  EXPECT_THROW(rotate(qkv, cache.get(), 1), InternalError);
  EXPECT_THROW(rotate(too_narrow, cache.get(), 0), InternalError);
  EXPECT_THROW(rotate(too_many, cache.get(), 0), InternalError);
}

FORERUN_FOR_EVERY_ISA(FusedOpsTest);

}  // namespace
}  // namespace forerun
