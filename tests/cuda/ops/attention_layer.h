// A layer of attention with random rows: what the GPU gives for it, and what double precision does.
#ifndef FORERUN_TESTS_CUDA_OPS_ATTENTION_LAYER_H_
#define FORERUN_TESTS_CUDA_OPS_ATTENTION_LAYER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cuda/ops/cuda_ops.h"
#include "tests/cuda/ops/gpu_rows.h"

namespace forerun::cuda {

// A model's layer of attention, with the queries, keys and values of a sequence's positions before
// they are rotated; each is a row [heads + 2 kv_heads, head_dim].
struct Layer {
  Layer(Random& random, int num_kv_heads, int group, int head_dim_, int element_bytes_,
        int num_positions_)
      : shape{num_kv_heads * group, num_kv_heads, head_dim_, 1.0f / std::sqrt(float(head_dim_))},
        element_bytes(element_bytes_),
        num_positions(num_positions_),
        qkv(random, num_positions_, (shape.num_heads + 2 * num_kv_heads) * head_dim_),
        cos_sin(num_positions_, head_dim_) {
    for (int p = 0; p < num_positions; ++p) {
      for (int i = 0; i < head_dim_ / 2; ++i) {
        const double angle = p * std::pow(100.0, -2.0 * i / head_dim_);
        cos_sin.row(p)[i] = static_cast<float>(std::cos(angle));
        cos_sin.row(p)[head_dim_ / 2 + i] = static_cast<float>(std::sin(angle));
      }
    }
  }

  float Kept(double x) const {
    return element_bytes == 4 ? static_cast<float>(x) : Rounded(static_cast<float>(x));
  }
  KvLayout KvLayoutOf(int num_layers, int block_size) const {
    return {num_layers, shape.num_kv_heads, shape.head_dim, block_size, element_bytes};
  }
  // A head of a row at a position, as it is stored: of the queries, the keys or the values.
  std::vector<double> Head(const float* row, int position, int head) const {
    const int d = shape.head_dim;
    std::vector<double> out(row + head * d, row + (head + 1) * d);
    if (head < shape.num_heads + shape.num_kv_heads) {
      for (int i = 0; i < d / 2; ++i) {
        const double first = out[i], second = out[d / 2 + i];
        const double cosine = cos_sin.row(position)[i], sine = cos_sin.row(position)[d / 2 + i];
        out[i] = first * cosine - second * sine;
        out[d / 2 + i] = second * cosine + first * sine;
      }
    }
    if (element_bytes == 1 && head >= shape.num_heads) {
      double largest = 0;
      for (const double x : out) largest = std::max(largest, std::abs(x));
      for (double& x : out) x = std::nearbyint(x * 127 / largest) * largest / 127;
    } else {
      for (double& x : out) x = Kept(x);
    }
    return out;
  }

  // Every position's keys, or values, of a KV head, as they are stored.
  std::vector<std::vector<double>> Stored(bool is_key, int kv_head) const {
    std::vector<std::vector<double>> stored;
    for (int p = 0; p < num_positions; ++p) {
      stored.push_back(
          Head(qkv.row(p), p, shape.num_heads + (is_key ? 0 : shape.num_kv_heads) + kv_head));
    }
    return stored;
  }

  AttentionShape shape;
  int element_bytes;
  int num_positions;
  HostRows qkv;
  HostRows cos_sin;
};

// The attention of a layer's positions in double precision.
class Reference {
 public:
  explicit Reference(const Layer& layer) : layer_(layer) {
    for (int kv_head = 0; kv_head < layer.shape.num_kv_heads; ++kv_head) {
      keys_.push_back(layer.Stored(/*is_key=*/true, kv_head));
      values_.push_back(layer.Stored(/*is_key=*/false, kv_head));
    }
  }

  std::vector<double> Attended(int position, int head) const {
    const AttentionShape& shape = layer_.shape;
    const int kv_head = head / (shape.num_heads / shape.num_kv_heads);
    const std::vector<double> query = layer_.Head(layer_.qkv.row(position), position, head);
    const int begin = std::max(shape.first_position,
                               shape.sliding_window > 0 ? position + 1 - shape.sliding_window : 0);
    std::vector<double> out(shape.head_dim, 0.0), scores;
    double max = -INFINITY, sum = 0;
    for (int p = begin; p <= position; ++p) {
      double score = 0;
      for (int i = 0; i < shape.head_dim; ++i) score += query[i] * keys_[kv_head][p][i];
      score *= shape.scale;
      if (shape.soft_cap > 0) score = shape.soft_cap * std::tanh(score / shape.soft_cap);
      scores.push_back(score);
      max = std::max(max, score);
    }
    for (int p = begin; p <= position; ++p) {
      const double weight = std::exp(scores[p - begin] - max);
      sum += weight;
      for (int i = 0; i < shape.head_dim; ++i) out[i] += weight * values_[kv_head][p][i];
    }
    for (double& x : out) x /= sum;
    return out;
  }

 private:
  const Layer& layer_;
  std::vector<std::vector<std::vector<double>>> keys_, values_;  // by KV head and position
};

// What attention gives in a pass over sequences whose rows are those of `qkv`, in order, or for the
// wanted rows. All is done in layer 1 of the cache, with other keys and values in layer 0.
inline HostRows RunAttention(CudaOps& ops, const Layer& layer, KvCache& cache,
                             const FloatVector& cos_sin, const HostRows& qkv,
                             std::span<const SequenceRows> sequences,
                             const std::vector<std::int32_t>& wanted = {}) {
  const std::vector<TokenId> tokens(qkv.rows);
  const ForwardRows& rows = ops.Begin({.tokens = tokens,
                                       .cache = &cache,
                                       .sequences = sequences,
                                       .wanted = wanted,
                                       .num_heads = layer.shape.num_heads});
  const GpuRows on_device(ops.memory(), qkv);
  ops.RotateAndStore(GpuRows(ops.memory(), qkv), {}, rows, cos_sin.data(), /*layer=*/0);
  ops.RotateAndStore(on_device, {}, rows, cos_sin.data(), /*layer=*/1);
  const int num_out = wanted.empty() ? qkv.rows : static_cast<int>(wanted.size());
  const int cols = layer.shape.num_heads * layer.shape.head_dim;
  GpuRows query(ops.memory(), num_out, cols, 3), out(ops.memory(), num_out, cols, 1);
  if (wanted.empty()) {
    ops.Copy(on_device.view().Columns(0, cols), query);
  } else {
    ops.GatherRows(on_device.view().Columns(0, cols), rows, RowIndices::kWanted, query);
  }
  ops.Attention(query, rows, wanted.empty() ? RowSet::kAll : RowSet::kWanted, /*layer=*/1,
                layer.shape, out);
  return out.Download();
}

// A sequence of a layer in a cache of random blocks, all of which begin as NaN.
class CachedSequence {
 public:
  CachedSequence(CudaOps& ops, const Layer& layer, int block_size, unsigned seed)
      : ops_(ops),
        layer_(layer),
        cos_sin_(ops.memory(), layer.cos_sin.values),
        cache_(ops.MakeKvCache(layer.KvLayoutOf(2, block_size), NumBlocks(block_size) + 3)) {
    for (int i = 0; i < NumBlocks(block_size) + 3; ++i) table_.push_back(i);
    std::shuffle(table_.begin(), table_.end(), std::mt19937(seed));
  }

  // Stores rows at the next slots and returns their attention.
  HostRows Step(const HostRows& qkv, int num_context, TreeSlots tree = {},
                const std::vector<std::int32_t>& wanted = {}) {
    const SequenceRows sequence = {0, qkv.rows, num_context, table_, tree};
    return RunAttention(ops_, layer_, *cache_, cos_sin_, qkv, {&sequence, 1}, wanted);
  }
  KvCache& cache() { return *cache_; }
  const std::vector<BlockId>& table() const { return table_; }

 private:
  int NumBlocks(int block_size) const {
    return (layer_.num_positions + block_size - 1) / block_size;
  }

  CudaOps& ops_;
  const Layer& layer_;
  FloatVector cos_sin_;
  std::unique_ptr<KvCache> cache_;
  std::vector<BlockId> table_;
};

// With long contexts and with wide heads few of them, since the emulated GPU takes its time.
inline Layer RandomLayer(Random& random, int element_bytes, int num_positions) {
  const int head_dims[] = {8, 12, 24, 40, 64, 80, 96, 128, 256};
  const bool is_long = num_positions > 100;
  const int head_dim = head_dims[random.Between(0, is_long ? 3 : random.Between(4, 8))];
  const bool is_large = is_long || head_dim > 64;
  Layer layer(random, is_large ? 1 : random.Between(1, 3), random.Between(1, is_large ? 2 : 5),
              head_dim, element_bytes, num_positions);
  if (random.Flip()) layer.shape.soft_cap = 4.0f;
  if (random.Flip()) layer.shape.sliding_window = random.Between(1, num_positions + 10);
  if (random.Between(0, 3) == 0) layer.shape.first_position = 1;
  return layer;
}

// Of a test's parameter, the bytes of an element.
inline std::string ElementName(const ::testing::TestParamInfo<int>& param) {
  return param.param == 1 ? "int8" : param.param == 2 ? "bfloat16" : "float32";
}

}  // namespace forerun::cuda

#endif  // FORERUN_TESTS_CUDA_OPS_ATTENTION_LAYER_H_
