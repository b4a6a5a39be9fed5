// The operations a transformer needs, as one interface. CpuOps implements it.
//
// Activations are float32 rows. Every output element is computed in an order that depends on the
// model's shape and on the row's own sequence only: never on the number of rows, their order, the
// chunking or the threads. Shapes that contradict each other throw InternalError. An Ops is driven
// by one thread at a time.
#ifndef FORERUN_CPP_OPS_OPS_H_
#define FORERUN_CPP_OPS_OPS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "cpp/kv/layout.h"
#include "cpp/ops/activation.h"
#include "cpp/ops/sequence_rows.h"
#include "cpp/tensor/tensor.h"
#include "forerun/types.h"

namespace forerun {

class ThreadTeam;

// A [num_outputs, num_inputs] weight in its Ops' own layout. The Ops must outlive it; it keeps the
// memory of weights that are gone.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  int num_outputs() const { return num_outputs_; }
  int num_inputs() const { return num_inputs_; }
  virtual std::int64_t num_bytes() const = 0;

 protected:
  PackedMatrix(int num_outputs, int num_inputs)
      : num_outputs_(num_outputs), num_inputs_(num_inputs) {}

 private:
  int num_outputs_, num_inputs_;
};

// Keys and values of all layers, laid out as kv/layout.h says.
class KvCache {
 public:
  virtual ~KvCache() = default;
  const KvLayout& layout() const { return layout_; }
  int num_blocks() const { return num_blocks_; }

 protected:
  KvCache(const KvLayout& layout, int num_blocks) : layout_(layout), num_blocks_(num_blocks) {}

 private:
  KvLayout layout_;
  int num_blocks_;
};

// Throws InternalError unless the sequences' rows lie within `num_rows` and their slots within the
// cache.
void CheckSequences(std::span<const SequenceRows> sequences, const KvCache& cache, int num_rows);

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float scale = 1.0f;     // multiplies q.k
  float soft_cap = 0.0f;  // s -> cap * tanh(s / cap); 0: none
  int sliding_window =
      0;  // a row sees its last `sliding_window` positions, its own included; 0: all
  int first_position = 0;  // positions before it are not attended to
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string isa() const = 0;

  // Packs float32, bfloat16 or float16 matrices [n_i, k], stacked by outputs, into `dtype`
  // (kFloat32 or kBFloat16).
  virtual std::unique_ptr<PackedMatrix> Pack(std::span<const TensorView> sources, DType dtype) = 0;

  virtual std::unique_ptr<KvCache> MakeKvCache(const KvLayout& layout, int num_blocks) = 0;

  // out[r] = scale * row tokens[r] of `table`, whose outputs are the vocabulary.
  virtual void Embed(std::span<const TokenId> tokens, const PackedMatrix& table, float scale,
                     Rows out) = 0;

  // y = x W^T (+ bias [num_outputs]) (+ y when `accumulate`).
  virtual void MatMul(ConstRows x, const PackedMatrix& weight, const float* bias, bool accumulate,
                      Rows y) = 0;

  // out = x / sqrt(mean(x^2) + eps) * weight, over each row's `group` consecutive values
  // (group = cols for a layer norm, head_dim for a q or k norm). weight [group]. out may be x.
  virtual void RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out) = 0;

  // Rotates each head of x [rows, num_heads * head_dim] in place, halves paired (i, i + head_dim /
  // 2). cos_sin [max_position, head_dim]: head_dim / 2 cosines, then as many sines.
  virtual void Rope(Rows x, int head_dim, std::span<const std::int32_t> positions,
                    const float* cos_sin) = 0;

  // Writes row r of keys and values [rows, num_kv_heads * head_dim] to its sequence's slot in
  // `layer`.
  virtual void StoreKv(ConstRows keys, ConstRows values, std::span<const SequenceRows> sequences,
                       int layer, KvCache& cache) = 0;

  // Copies tokens' keys and values within the cache, in all layers, one move after the other.
  virtual void MoveKv(std::span<const KvMove> moves, KvCache& cache) = 0;

  // Attention of every row over the cached positions that it sees, its own included (StoreKv comes
  // first). A tree's node gets the bits that it would get were its path all that follows the
  // context. query, out [rows, num_heads * head_dim].
  virtual void Attention(ConstRows query, const KvCache& cache, int layer,
                         const AttentionShape& shape, std::span<const SequenceRows> sequences,
                         Rows out) = 0;

  // out[:, i] = activation(gate_up[:, i]) * gate_up[:, cols(out) + i].
  virtual void GatedActivation(ConstRows gate_up, Activation activation, Rows out) = 0;

  // out = activation(x + bias), bias [cols] or null. out may be x.
  virtual void Activate(ConstRows x, const float* bias, Activation activation, Rows out) = 0;

  // x += y.
  virtual void Add(ConstRows y, Rows x) = 0;

  // x *= factor.
  virtual void Scale(float factor, Rows x) = 0;

  // x -> cap * tanh(x / cap), in place.
  virtual void SoftCap(Rows x, float cap) = 0;

  // out[i] = x[rows[i]].
  virtual void GatherRows(ConstRows x, std::span<const std::int32_t> rows, Rows out) = 0;

  // out[rows[i]] = x[i], one after the other.
  virtual void ScatterRows(ConstRows x, std::span<const std::int32_t> rows, Rows out) = 0;
};

// `isa` as FindIsa takes it (util/simd/isa.h). The team must outlive the Ops.
std::unique_ptr<Ops> MakeCpuOps(ThreadTeam& team, const std::string& isa = "");

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_OPS_H_
