// The operations a transformer needs, as one interface. CpuOps implements it, and
// CudaOps (cuda/ops).
//
// Rows and vectors lie in the Ops' memory(): callers may do arithmetic on their pointers, but not
// read or write through them. Token ids, sequences and row indices are the host's, and are passed
// once per forward pass, to Begin. An operation may return before it is done; the operations after
// it and memory().Download see its results.
//
// Activations are float32 rows. Every output element is computed in an order that depends on the
// model's shape and on the row's own sequence only: never on the number of rows, their order, the
// chunking or the threads. Shapes that contradict each other throw InternalError. An Ops is driven
// by one thread at a time.
#ifndef FORERUN_CPP_OPS_OPS_H_
#define FORERUN_CPP_OPS_OPS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "cpp/kv/layout.h"
#include "cpp/ops/activation.h"
#include "cpp/ops/forward_rows.h"
#include "cpp/ops/kv_cache.h"
#include "cpp/ops/packed_matrix.h"
#include "cpp/ops/pass_graphs.h"
#include "cpp/ops/sequence_rows.h"
#include "cpp/ops/weight_source.h"
#include "cpp/tensor/tensor.h"
#include "forerun/types.h"

namespace forerun {

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float scale = 1.0f;      // multiplies q.k
  float soft_cap = 0.0f;   // s -> cap * tanh(s / cap); 0: none
  int sliding_window = 0;  // a row sees its last so many positions, its own included; 0: all
  int first_position = 0;  // positions before it are not attended to
};

// Of an RMS norm over whole rows. weight [cols].
struct NormWeight {
  const float* weight = nullptr;
  float eps = 0.0f;
};

// Norms over the query and the key heads [head_dim]; null: none.
struct QkNorms {
  const float* query = nullptr;
  const float* key = nullptr;
  float eps = 0.0f;
};

// An MLP's weights: gate_up [2 m, k], gates first, and down [n, m]. Biases may be null.
struct GatedMlp {
  const PackedMatrix& gate_up;
  const float* gate_up_bias;
  Activation activation;
  const PackedMatrix& down;
  const float* down_bias;
};

// The most that forward passes ask for.
struct OpsLimits {
  int max_rows = 0;
  int max_inputs = 0;  // columns of a product's x, or of activations
  int max_gated = 0;   // m of an MLP
  // With attention: sequences, and the positions of each, of queries of num_heads over a cache of
  // this layout.
  int max_sequences = 0;
  int max_model_len = 0;
  int num_heads = 0;
  KvLayout layout = {};
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string isa() const = 0;

  // Where the rows and the vectors of all operations lie.
  virtual Memory& memory() = 0;

  // Allocates the operations' own scratch, so that forward passes within the limits need not.
  virtual void Reserve(const OpsLimits& limits) = 0;

  // Packs matrices of the host [n_i, k], stacked by outputs, each in its format.
  virtual std::unique_ptr<PackedMatrix> Pack(std::span<const WeightSource> sources) = 0;
  // The same of floats in one format.
  std::unique_ptr<PackedMatrix> Pack(std::span<const TensorView> sources, WeightFormat format) {
    return Pack(SourcesOf(sources, format));
  }
  // The matrix that Pack would return for the next sources, of this shape, if an earlier process
  // has kept it. Null: it has not.
  virtual std::unique_ptr<PackedMatrix> Restore(std::span<const PartShape> /*parts*/,
                                                int /*num_inputs*/) {
    return nullptr;
  }

  // Calls body(i) for every i below count, on as many threads as operations run: what prepares
  // sources for Pack is work of the host. Not while an operation runs.
  virtual void ForEach(int count, const std::function<void(int)>& body) {
    for (int i = 0; i < count; ++i) body(i);
  }

  virtual std::unique_ptr<KvCache> MakeKvCache(const KvLayout& layout, int num_blocks) = 0;

  // For the passes of one model. Null: this Ops does not keep any.
  virtual std::unique_ptr<PassGraphs> MakePassGraphs() { return nullptr; }

  // Starts a forward pass. `rows` below are what it returns.
  virtual const ForwardRows& Begin(const ForwardData& data) = 0;

  // out[r] = scale * the row of `table` of the r-th row's token; the table's outputs are the
  // vocabulary.
  virtual void Embed(const ForwardRows& rows, const PackedMatrix& table, float scale, Rows out) = 0;

  // y = x W^T (+ bias [num_outputs]) (+ y when `accumulate`).
  virtual void MatMul(ConstRows x, const PackedMatrix& weight, const float* bias, bool accumulate,
                      Rows y) = 0;

  // y = RmsNorm(x) W^T (+ bias [num_outputs]).
  virtual void NormMatMul(ConstRows x, const NormWeight& norm, const PackedMatrix& weight,
                          const float* bias, Rows y) = 0;

  // With [g, u] = gate_up(RmsNorm(x)): y = down(activation(g) * u) (+ y when `accumulate`). y may
  // be x.
  virtual void GatedMatMul(ConstRows x, const NormWeight& norm, const GatedMlp& mlp,
                           bool accumulate, Rows y) = 0;

  // out = x / sqrt(mean(x^2) + eps) * weight, over each row's `group` consecutive values
  // (group = cols for a layer norm, head_dim for a q or k norm). weight [group]. out may be x.
  virtual void RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out) = 0;

  // qkv [num_rows, (heads + 2 kv_heads) * head_dim]: normalizes the query and key heads, if there
  // are norms, and rotates them by their rows' positions, in place, halves paired (i, i + head_dim
  // / 2). Then writes keys and values to their slots in `layer` of the cache. cos_sin
  // [max_position, head_dim]: head_dim / 2 cosines, then as many sines.
  virtual void RotateAndStore(Rows qkv, const QkNorms& norms, const ForwardRows& rows,
                              const float* cos_sin, int layer) = 0;

  // Copies tokens' keys and values within the cache, in all layers, one move after the other.
  virtual void MoveKv(std::span<const KvMove> moves, KvCache& cache) = 0;

  // Attention of all rows, or of the wanted ones, over the cached positions that they see, their
  // own included (RotateAndStore comes first). A tree's node gets the bits that it would get were
  // its path all that follows the context. query, out [rows, num_heads * head_dim].
  virtual void Attention(ConstRows query, const ForwardRows& rows, RowSet which, int layer,
                         const AttentionShape& shape, Rows out) = 0;

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

  // x = 0.
  virtual void Zero(Rows x) = 0;

  // out = x.
  virtual void Copy(ConstRows x, Rows out) = 0;

  // With i the indices: out[r] = x[i[r]].
  virtual void GatherRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) = 0;

  // With i the indices: out[i[r]] = x[r], one after the other.
  virtual void ScatterRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) = 0;

  // x[to] = x[from], one move after the other.
  virtual void MoveRows(std::span<const KvMove> moves, Rows x) = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_OPS_H_
