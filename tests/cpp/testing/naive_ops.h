// Every operation as its definition reads, one element at a time, summed in double precision: the
// oracle of faster Ops and of what is built on them.
#ifndef FORERUN_TESTS_CPP_TESTING_NAIVE_OPS_H_
#define FORERUN_TESTS_CPP_TESTING_NAIVE_OPS_H_

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpp/ops/ops.h"
#include "cpp/util/check.h"
#include "tests/cpp/testing/integer_weights.h"

namespace forerun {

class NaiveMatrix : public PackedMatrix {
 public:
  NaiveMatrix(int num_outputs, int num_inputs, std::vector<float> values, WeightFormat format)
      : PackedMatrix(num_outputs, num_inputs), values_(std::move(values)), format_(format) {
    FORERUN_CHECK(static_cast<std::int64_t>(values_.size()) ==
                  std::int64_t{num_outputs} * num_inputs);
  }
  std::int64_t num_bytes() const override {
    const int element_bytes = format_ == WeightFormat::kBFloat16 ? 2 : 4;
    return std::ssize(values_) * element_bytes;
  }
  void AddBytes(WeightBytes& bytes) const override { bytes[format_] += num_bytes(); }
  float at(int output, int input) const {
    return values_[static_cast<std::size_t>(output) * num_inputs() + input];
  }

 private:
  std::vector<float> values_;  // rounded as the format says
  WeightFormat format_;
};

// Indexed by meaning rather than laid out as kv/layout.h says.
class NaiveKvCache : public KvCache {
 public:
  NaiveKvCache(const KvLayout& layout, int num_blocks)
      : KvCache(layout, num_blocks),
        keys_(static_cast<std::size_t>(layout.num_layers) * num_blocks * layout.block_elements(),
              std::nanf("")),
        values_(keys_) {}
  float& key(int layer, BlockId block, int slot, int channel) {
    return keys_[Index(layer, block, slot, channel)];
  }
  float& value(int layer, BlockId block, int slot, int channel) {
    return values_[Index(layer, block, slot, channel)];
  }
  float key(int layer, BlockId block, int slot, int channel) const {
    return keys_[Index(layer, block, slot, channel)];
  }
  float value(int layer, BlockId block, int slot, int channel) const {
    return values_[Index(layer, block, slot, channel)];
  }

 private:
  // `channel` counts over all KV heads.
  std::size_t Index(int layer, BlockId block, int slot, int channel) const {
    FORERUN_CHECK(block >= 0 && block < num_blocks(), std::to_string(block));
    const std::size_t channels = std::size_t(layout().num_kv_heads) * layout().head_dim;
    const std::size_t row =
        (std::size_t(layer) * num_blocks() + block) * layout().block_size + slot;
    return row * channels + channel;
  }

  std::vector<float> keys_, values_;
};

class NaiveOps : public Ops {
 public:
  std::string isa() const override { return "naive"; }
  Memory& memory() override { return HostMemory(); }
  void Reserve(const OpsLimits&) override {}

  using Ops::Pack;
  // Integers as floats: activations are not quantized.
  std::unique_ptr<PackedMatrix> Pack(std::span<const WeightSource> sources) override {
    std::vector<float> values;
    int num_outputs = 0, num_inputs = 0;
    for (const WeightSource& source : sources) {
      if (const auto* view = std::get_if<IntegerView>(&source.weights)) {
        num_inputs = view->num_inputs;
        num_outputs += view->num_outputs;
        for (int i = 0; i < view->num_outputs * num_inputs; ++i) {
          values.push_back(testing::WeightOf(*view, i / num_inputs, i % num_inputs));
        }
        continue;
      }
      FORERUN_CHECK(!HasIntegers(source.format), Name(source.format));
      const auto& floats = std::get<TensorView>(source.weights);
      FORERUN_CHECK(floats.shape.size() == 2);
      num_inputs = static_cast<int>(floats.shape[1]);
      num_outputs += static_cast<int>(floats.shape[0]);
      for (std::int64_t i = 0; i < floats.num_elements(); ++i) {
        const float value = ElementOf(floats, i);
        values.push_back(source.format == WeightFormat::kBFloat16 ? Rounded(value) : value);
      }
    }
    // Checks that all have as many inputs.
    return std::make_unique<NaiveMatrix>(num_outputs, num_inputs, std::move(values),
                                         sources[0].format);
  }

  std::unique_ptr<KvCache> MakeKvCache(const KvLayout& layout, int num_blocks) override {
    return std::make_unique<NaiveKvCache>(layout, num_blocks);
  }

  const ForwardRows& Begin(const ForwardData& data) override {
    rows_.Set(data);
    return rows_;
  }

  void Embed(const ForwardRows& rows, const PackedMatrix& table, float scale, Rows out) override {
    const std::span<const TokenId> tokens = rows.tokens();
    const auto& matrix = static_cast<const NaiveMatrix&>(table);
    for (int r = 0; r < out.rows; ++r) {
      for (int c = 0; c < out.cols; ++c) out.row(r)[c] = scale * matrix.at(tokens[r], c);
    }
  }

  void MatMul(ConstRows x, const PackedMatrix& weight, const float* bias, bool accumulate,
              Rows y) override {
    const auto& matrix = static_cast<const NaiveMatrix&>(weight);
    FORERUN_CHECK(x.cols == matrix.num_inputs() && y.cols == matrix.num_outputs() &&
                  x.rows == y.rows);
    for (int r = 0; r < x.rows; ++r) {
      for (int o = 0; o < y.cols; ++o) {
        double sum = 0.0;
        for (int i = 0; i < x.cols; ++i) sum += double{x.row(r)[i]} * matrix.at(o, i);
        if (bias != nullptr) sum += bias[o];
        if (accumulate) sum += y.row(r)[o];
        y.row(r)[o] = static_cast<float>(sum);
      }
    }
  }

  void NormMatMul(ConstRows x, const NormWeight& norm, const PackedMatrix& weight,
                  const float* bias, Rows y) override {
    const Scratch normed(x.rows, x.cols);
    RmsNorm(x, norm.weight, x.cols, norm.eps, normed.rows);
    MatMul(normed.rows, weight, bias, /*accumulate=*/false, y);
  }

  void GatedMatMul(ConstRows x, const NormWeight& norm, const GatedMlp& mlp, bool accumulate,
                   Rows y) override {
    const Scratch gate_up(x.rows, mlp.gate_up.num_outputs());
    const Scratch activated(x.rows, mlp.down.num_inputs());
    NormMatMul(x, norm, mlp.gate_up, mlp.gate_up_bias, gate_up.rows);
    GatedActivation(gate_up.rows, mlp.activation, activated.rows);
    MatMul(activated.rows, mlp.down, mlp.down_bias, accumulate, y);
  }

  void RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out) override {
    FORERUN_CHECK(x.cols % group == 0 && x.cols == out.cols && x.rows == out.rows);
    for (int r = 0; r < x.rows; ++r) {
      for (int begin = 0; begin < x.cols; begin += group) {
        double squares = 0.0;
        for (int i = 0; i < group; ++i) {
          squares += double{x.row(r)[begin + i]} * x.row(r)[begin + i];
        }
        const double scale = 1.0 / std::sqrt(squares / group + eps);
        for (int i = 0; i < group; ++i) {
          out.row(r)[begin + i] = static_cast<float>(x.row(r)[begin + i] * scale * weight[i]);
        }
      }
    }
  }

  void RotateAndStore(Rows qkv, const QkNorms& norms, const ForwardRows& rows, const float* cos_sin,
                      int layer) override {
    const int head_dim = rows.cache()->layout().head_dim;
    const int kv_cols = rows.cache()->layout().num_kv_heads * head_dim;
    const int query_cols = qkv.cols - 2 * kv_cols;
    const Rows query = qkv.Columns(0, query_cols), key = qkv.Columns(query_cols, kv_cols);
    const Rows value = qkv.Columns(query_cols + kv_cols, kv_cols);
    if (norms.query != nullptr) RmsNorm(query, norms.query, head_dim, norms.eps, query);
    if (norms.key != nullptr) RmsNorm(key, norms.key, head_dim, norms.eps, key);
    for (const Rows& part : {query, key}) Rotate(part, head_dim, rows.positions(), cos_sin);
    StoreKv(key, value, rows.sequences(RowSet::kAll), layer, *rows.cache());
  }

  static void Rotate(Rows x, int head_dim, std::span<const std::int32_t> positions,
                     const float* cos_sin) {
    const int half = head_dim / 2;
    for (int r = 0; r < x.rows; ++r) {
      const float* cosines = cos_sin + std::int64_t{positions[r]} * head_dim;
      const float* sines = cosines + half;
      for (int head = 0; head < x.cols; head += head_dim) {
        for (int i = 0; i < half; ++i) {
          float& first = x.row(r)[head + i];
          float& second = x.row(r)[head + half + i];
          const double a = first, b = second;
          first = static_cast<float>(a * cosines[i] - b * sines[i]);
          second = static_cast<float>(b * cosines[i] + a * sines[i]);
        }
      }
    }
  }

  static void StoreKv(ConstRows keys, ConstRows values, std::span<const SequenceRows> sequences,
                      int layer, KvCache& cache) {
    auto& naive = static_cast<NaiveKvCache&>(cache);
    const int block_size = cache.layout().block_size;
    const bool rounds = cache.layout().element_bytes == 2;
    for (const SequenceRows& sequence : sequences) {
      for (int i = 0; i < sequence.num_rows; ++i) {
        const int position = sequence.num_context + i;
        const BlockId block = sequence.block_table[position / block_size];
        for (int c = 0; c < keys.cols; ++c) {
          const float key = keys.row(sequence.row_begin + i)[c];
          const float value = values.row(sequence.row_begin + i)[c];
          naive.key(layer, block, position % block_size, c) = rounds ? Rounded(key) : key;
          naive.value(layer, block, position % block_size, c) = rounds ? Rounded(value) : value;
        }
      }
    }
  }

  void MoveKv(std::span<const KvMove> moves, KvCache& cache) override {
    auto& naive = static_cast<NaiveKvCache&>(cache);
    const KvLayout& layout = cache.layout();
    for (const KvMove& move : moves) {
      const auto [from, from_slot] = std::div(move.from, std::int64_t{layout.block_size});
      const auto [to, to_slot] = std::div(move.to, std::int64_t{layout.block_size});
      for (int layer = 0; layer < layout.num_layers; ++layer) {
        for (int c = 0; c < layout.num_kv_heads * layout.head_dim; ++c) {
          naive.key(layer, to, to_slot, c) = naive.key(layer, from, from_slot, c);
          naive.value(layer, to, to_slot, c) = naive.value(layer, from, from_slot, c);
        }
      }
    }
  }

  void Attention(ConstRows query, const ForwardRows& rows, RowSet which, int layer,
                 const AttentionShape& shape, Rows out) override {
    const auto& naive = static_cast<const NaiveKvCache&>(*rows.cache());
    for (const SequenceRows& sequence : rows.sequences(which)) {
      for (int i = 0; i < sequence.num_rows; ++i) {
        const int row = sequence.row_begin + i;
        for (int head = 0; head < shape.num_heads; ++head) {
          AttendHead(query.row(row) + head * shape.head_dim, naive, layer, shape, sequence,
                     PathTo(sequence, sequence.num_context + i, shape), head,
                     out.row(row) + head * shape.head_dim);
        }
      }
    }
  }

  void GatedActivation(ConstRows gate_up, Activation activation, Rows out) override {
    FORERUN_CHECK(gate_up.cols == 2 * out.cols && gate_up.rows == out.rows);
    for (int r = 0; r < out.rows; ++r) {
      for (int c = 0; c < out.cols; ++c) {
        const double up = gate_up.row(r)[out.cols + c];
        out.row(r)[c] = static_cast<float>(Activate(gate_up.row(r)[c], activation) * up);
      }
    }
  }

  void Activate(ConstRows x, const float* bias, Activation activation, Rows out) override {
    for (int r = 0; r < out.rows; ++r) {
      for (int c = 0; c < out.cols; ++c) {
        const double value = double{x.row(r)[c]} + (bias != nullptr ? bias[c] : 0.0f);
        out.row(r)[c] = static_cast<float>(Activate(value, activation));
      }
    }
  }

  void Add(ConstRows y, Rows x) override {
    for (int r = 0; r < x.rows; ++r) {
      for (int c = 0; c < x.cols; ++c) x.row(r)[c] += y.row(r)[c];
    }
  }

  void Scale(float factor, Rows x) override {
    for (int r = 0; r < x.rows; ++r) {
      for (int c = 0; c < x.cols; ++c) x.row(r)[c] *= factor;
    }
  }

  void SoftCap(Rows x, float cap) override {
    for (int r = 0; r < x.rows; ++r) {
      for (int c = 0; c < x.cols; ++c) {
        x.row(r)[c] = static_cast<float>(cap * std::tanh(double{x.row(r)[c]} / cap));
      }
    }
  }

  void Zero(Rows x) override {
    for (int r = 0; r < x.rows; ++r) {
      for (int c = 0; c < x.cols; ++c) x.row(r)[c] = 0.0f;
    }
  }

  void Copy(ConstRows x, Rows out) override {
    for (int r = 0; r < out.rows; ++r) CopyRow(x, r, out, r);
  }

  void GatherRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) override {
    for (int r = 0; r < out.rows; ++r) CopyRow(x, rows.indices(indices)[r], out, r);
  }

  void ScatterRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) override {
    for (int r = 0; r < x.rows; ++r) CopyRow(x, r, out, rows.indices(indices)[r]);
  }

  void MoveRows(std::span<const KvMove> moves, Rows x) override {
    for (const KvMove& move : moves) {
      CopyRow(x, static_cast<int>(move.from), x, static_cast<int>(move.to));
    }
  }

 private:
  struct Scratch {
    Scratch(int num_rows, int cols)
        : values(static_cast<std::size_t>(num_rows) * cols), rows(values.data(), num_rows, cols) {}
    std::vector<float> values;
    Rows rows;
  };

  static void CopyRow(ConstRows x, int from, Rows out, int to) {
    for (int c = 0; c < out.cols; ++c) out.row(to)[c] = x.row(from)[c];
  }

  static float Rounded(float value) { return BFloat16ToFloat(FloatToBFloat16(value)); }

  static float ElementOf(const TensorView& view, std::int64_t i) {
    if (view.dtype == DType::kFloat32) return static_cast<const float*>(view.data)[i];
    const std::uint16_t bits = static_cast<const std::uint16_t*>(view.data)[i];
    return view.dtype == DType::kBFloat16 ? BFloat16ToFloat(bits) : Float16ToFloat(bits);
  }

  static double Activate(double x, Activation activation) {
    switch (activation) {
      case Activation::kSilu:
        return x / (1.0 + std::exp(-x));
      case Activation::kGelu:
        return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
      case Activation::kSigmoid:
        return 1.0 / (1.0 + std::exp(-x));
      case Activation::kGeluTanh:
        return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    }
    return 0.0;
  }

  // The slots that a row sees, first to last.
  static std::vector<int> PathTo(const SequenceRows& sequence, int slot,
                                 const AttentionShape& shape) {
    std::vector<int> slots;
    for (; slot >= 0; slot = sequence.SlotBefore(slot)) slots.insert(slots.begin(), slot);
    if (shape.sliding_window > 0 && static_cast<int>(slots.size()) > shape.sliding_window) {
      slots.erase(slots.begin(), slots.end() - shape.sliding_window);
    }
    std::erase_if(slots, [&](int visible) { return visible < shape.first_position; });
    return slots;
  }

  static void AttendHead(const float* query, const NaiveKvCache& cache, int layer,
                         const AttentionShape& shape, const SequenceRows& sequence,
                         const std::vector<int>& slots, int head, float* out) {
    const int block_size = cache.layout().block_size;
    const int channel = head / (shape.num_heads / shape.num_kv_heads) * shape.head_dim;
    std::vector<double> weights;
    double sum = 0.0, best = -INFINITY;
    for (int slot : slots) {
      double score = 0.0;
      for (int i = 0; i < shape.head_dim; ++i) {
        score += double{query[i]} * cache.key(layer, sequence.block_table[slot / block_size],
                                              slot % block_size, channel + i);
      }
      score *= shape.scale;
      if (shape.soft_cap > 0.0f) score = shape.soft_cap * std::tanh(score / shape.soft_cap);
      weights.push_back(score);
      best = std::max(best, score);
    }
    for (double& weight : weights) sum += weight = std::exp(weight - best);
    for (int i = 0; i < shape.head_dim; ++i) {
      double mean = 0.0;
      for (std::size_t k = 0; k < slots.size(); ++k) {
        mean += weights[k] / sum *
                cache.value(layer, sequence.block_table[slots[k] / block_size],
                            slots[k] % block_size, channel + i);
      }
      out[i] = static_cast<float>(mean);
    }
  }

  ForwardRows rows_;  // of the last Begin
};

}  // namespace forerun

#endif  // FORERUN_TESTS_CPP_TESTING_NAIVE_OPS_H_
