// A row's logits as they are sampled from: masked, banned, biased and penalised.
//
// The logits in memory stay as they are: edits are sparse and masks have one bit per token, so each
// reader applies them. Nothing is restored afterwards, bfloat16 rows get edits in float32, and the
// raw logits are at hand for log-probabilities.
#ifndef FORERUN_CUDA_VERIFY_ROW_READER_CUH_
#define FORERUN_CUDA_VERIFY_ROW_READER_CUH_

#include "cpp/sampling/weight_math.h"
#include "cpp/verify/sample_batch.h"
#include "cuda/portable.cuh"
#include "cuda/verify/row_state.h"

namespace forerun::cuda {

// Four logits from a token whose id is a multiple of 4; -infinity after the last token.
struct Quad {
  float logits[4];
};

template <typename T>
__device__ Quad LoadQuad(const T* row, int vocab_size, TokenId first) {
  struct alignas(4 * sizeof(T)) Packed {
    T values[4];
  };
  Quad quad;
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(row) % alignof(Packed) == 0;
  if (is_aligned && first + 4 <= vocab_size) {
    const Packed packed = *reinterpret_cast<const Packed*>(row + first);
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.logits[i] = ToFloat(packed.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      quad.logits[i] = first + i < vocab_size ? ToFloat(row[first + i]) : -INFINITY;
    }
  }
  return quad;
}

// A row and its request's rule in shared memory, so that a block loads them once.
struct SharedRow {
  static constexpr int kRowWords = sizeof(SampleRow) / sizeof(unsigned);
  static constexpr int kRuleWords = sizeof(SampleRule) / sizeof(unsigned);
  // Words, as objects in shared memory cannot have constructors.
  alignas(16) unsigned row_words[kRowWords], rule_words[kRuleWords];

  // All threads of a block of at least 64 call it, before they use the others.
  __device__ void Load(const SampleArrays& arrays, int row) {
    static_assert(kRowWords + kRuleWords <= 64);
    const SampleRow* const from = arrays.rows + row;
    const auto* const words = reinterpret_cast<const unsigned*>(from);
    const auto* const of_rule = reinterpret_cast<const unsigned*>(arrays.rules + from->request);
    const int t = static_cast<int>(threadIdx.x);
    if (t < kRowWords) {
      row_words[t] = words[t];
    } else if (t < kRowWords + kRuleWords) {
      rule_words[t - kRowWords] = of_rule[t - kRowWords];
    }
    __syncthreads();
  }
  __device__ const SampleRow& row() const { return *reinterpret_cast<const SampleRow*>(row_words); }
  __device__ const SampleRule& rule() const {
    return *reinterpret_cast<const SampleRule*>(rule_words);
  }
};

// A row of a batch. Any thread may use it alone.
template <typename T>
class RowReader {
 public:
  __device__ RowReader(const DeviceLogits& logits, const SampleArrays& arrays, int row)
      : RowReader(logits, arrays, row, arrays.rows[row], arrays.rules[arrays.rows[row].request]) {}
  __device__ RowReader(const DeviceLogits& logits, const SampleArrays& arrays, int row,
                       const SharedRow& shared)
      : RowReader(logits, arrays, row, shared.row(), shared.rule()) {}
  __device__ RowReader(const DeviceLogits& logits, const SampleArrays& arrays, int row,
                       const SampleRow& sample_row, const SampleRule& rule)
      : raw_(static_cast<const T*>(logits.data) + row * logits.stride),
        arrays_(arrays),
        row_(sample_row),
        rule_(rule) {
    is_edited_ = rule_.mask >= 0 || row_.mask >= 0 || row_.num_bans > 0 || rule_.num_edits > 0;
  }

  // The row as the model computed it.
  __device__ RowReader WithoutEdits() const {
    RowReader raw = *this;
    raw.is_edited_ = false;
    return raw;
  }

  __device__ const SampleRow& row() const { return row_; }
  __device__ const SampleRule& rule() const { return rule_; }
  __device__ int vocab_size() const { return arrays_.vocab_size; }
  __device__ int output_index() const { return rule_.first_output_index + row_.depth; }
  // False: no state is wanted.
  __device__ bool is_sampled() const { return row_.node >= -1; }
  // False: the kept tokens are wanted, but none of them is sampled.
  __device__ bool wants_token() const { return rule_.samples != 0; }
  __device__ bool is_greedy() const { return rule_.inverse_temperature == 0.0; }

  __device__ float At(TokenId token) const {
    const float logit = ToFloat(raw_[token]);
    return is_edited_ ? Edited(token, logit) : logit;
  }
  __device__ Quad QuadAt(TokenId first) const {
    Quad quad = LoadQuad(raw_, vocab_size(), first);
    if (!is_edited_) return quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + i < vocab_size()) quad.logits[i] = Edited(first + i, quad.logits[i]);
    }
    return quad;
  }

  // How far a logit is below the row's highest, over the temperature.
  __device__ double Scaled(float logit, float max) const {
    return (logit - static_cast<double>(max)) * rule_.inverse_temperature;
  }
  __device__ Mass WeightAt(float logit, float max) const {
    return static_cast<Mass>(Weight(Scaled(logit, max)) * 0x1p32);
  }
  // 0 for tokens that are not kept or do not exist.
  __device__ Mass KeptWeight(const RowState& state, TokenId token) const {
    if (token < 0 || token >= vocab_size()) return 0;
    const float logit = At(token);
    return CodeOf(logit, token) <= state.cut ? WeightAt(logit, state.max) : 0;
  }

 private:
  __device__ float Edited(TokenId token, float logit) const {
    if (arrays_.Masks(rule_.mask, token) || arrays_.Masks(row_.mask, token)) return -INFINITY;
    for (int i = 0; i < row_.num_bans; ++i) {
      if (arrays_.bans[row_.first_ban + i] == token) return -INFINITY;
    }
    // The edits of a request are sorted by token.
    int begin = rule_.first_edit;
    int end = begin + rule_.num_edits;
    while (begin < end) {
      const int middle = begin + (end - begin) / 2;
      if (arrays_.edits[middle].token < token) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    const bool is_edited =
        begin < rule_.first_edit + rule_.num_edits && arrays_.edits[begin].token == token;
    return is_edited ? arrays_.Edited(rule_, arrays_.edits[begin], row_.node, logit) : logit;
  }

  const T* const raw_;
  const SampleArrays& arrays_;
  const SampleRow& row_;
  const SampleRule& rule_;
  bool is_edited_;
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_ROW_READER_CUH_
