#include "cuda/ops/cuda_ops.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "cpp/util/check.h"
#include "cuda/check_cuda.h"
#include "cuda/ops/attention.h"
#include "cuda/ops/cuda_kv_cache.h"
#include "cuda/ops/cuda_matrix.h"
#include "cuda/ops/kv_layer.h"
#include "cuda/ops/pass_graphs.h"
#include "cuda/ops/product_prefill.h"
#include "cuda/ops/row_ops.h"
#include "cuda/use_gpu.h"
#include "forerun/error.h"

namespace forerun::cuda {

namespace {

// Rows of an MLP at a time, so that what lies between its products stays small.
constexpr int kMlpRows = 1024;
// The same where gates and what they gate are products of their own.
constexpr int kApartRows = 256;

const CudaKvCache& CacheOf(const ForwardRows& rows) {
  const auto* cache = dynamic_cast<const CudaKvCache*>(rows.cache());
  FORERUN_CHECK(cache != nullptr, "a KV cache of another Ops");
  return *cache;
}

template <typename T>
void CheckShape(const BasicRows<T>& rows, int num_rows, int num_cols) {
  FORERUN_CHECK(rows.rows == num_rows && rows.cols == num_cols,
                std::to_string(rows.rows) + " x " + std::to_string(rows.cols) + " rows, not " +
                    std::to_string(num_rows) + " x " + std::to_string(num_cols));
}

void CheckIndices(std::span<const std::int32_t> indices, ConstRows dense, ConstRows all) {
  CheckShape(dense, static_cast<int>(indices.size()), all.cols);
  for (const std::int32_t row : indices) FORERUN_CHECK(row >= 0 && row < all.rows, "no such row");
}

// Throws InvalidArgument unless attention with float32 keys and values fits the GPU.
void CheckSharedMemory(int head_dim) {
  const UseGpu use;
  int most = 0;
  CheckCuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, /*device=*/0),
            "the size of a block's memory");
  const std::size_t needed = Float32SharedBytes(head_dim);
  if (needed <= static_cast<std::size_t>(most)) return;
  throw InvalidArgument("kv_cache_dtype", "float32",
                        "\"bfloat16\": heads of " + std::to_string(head_dim) +
                            " channels in float32 take " + std::to_string(needed) +
                            " bytes of a block's memory, of which this GPU has " +
                            std::to_string(most));
}

}  // namespace

void CudaOps::Reserve(const OpsLimits& limits) {
  const UseGpu use;
  Scratch(activated_, std::min(limits.max_rows, kMlpRows), limits.max_gated);
  Scratch(gate_up_, std::min(limits.max_rows, kApartRows), 2 * limits.max_gated);
  rows_.Reserve(limits);
  moves_.Reserve(limits.max_rows * sizeof(KvMove));
  const std::size_t num_bytes =
      std::max(RoundedBytes(limits.max_rows, limits.max_inputs),
               RoundedBytes(std::min(limits.max_rows, kMlpRows), limits.max_gated));
  if (rounded_.num_bytes() < num_bytes) rounded_ = AlignedBuffer(memory_, num_bytes);
}

std::unique_ptr<PackedMatrix> CudaOps::Pack(std::span<const WeightSource> sources) {
  return std::make_unique<CudaMatrix>(sources, memory_, stream_);
}

std::unique_ptr<KvCache> CudaOps::MakeKvCache(const KvLayout& layout, int num_blocks) {
  FORERUN_CHECK(
      num_blocks >= 0 && layout.num_layers > 0 && layout.num_kv_heads > 0 && layout.head_dim > 0,
      "an empty KV cache");
  FORERUN_CHECK(layout.block_size > 0 && layout.block_size % 8 == 0,
                "blocks of a multiple of 8, so that heads begin and scales lie where they may");
  if (layout.head_dim > kMaxHeadDim) {
    throw InvalidArgument("model", std::to_string(layout.head_dim) + " channels of a head",
                          "at most " + std::to_string(kMaxHeadDim) + " on a GPU");
  }
  if (layout.element_bytes == 4) CheckSharedMemory(layout.head_dim);
  return std::make_unique<CudaKvCache>(layout, num_blocks, memory_);
}

std::unique_ptr<PassGraphs> CudaOps::MakePassGraphs() {
  return std::make_unique<CudaPassGraphs>(*this);
}

CudaOps::Shape CudaOps::shape() const {
  return {rows_.shape(), {activated_.as<void>(), gate_up_.as<void>(), rounded_.as<void>()}};
}

const ForwardRows& CudaOps::Begin(const ForwardData& data) {
  const UseGpu use;
  rows_.Upload(data);
  return rows_;
}

void CudaOps::Embed(const ForwardRows& rows, const PackedMatrix& table, float scale, Rows out) {
  CheckShape(out, rows.num_rows(), table.num_inputs());
  const CudaMatrix& matrix = MatrixOf(table);
  FORERUN_CHECK(matrix.stretches().size() == 1, "an embedding of several formats");
  for (const TokenId token : rows.tokens()) {
    FORERUN_CHECK(token >= 0 && token < table.num_outputs(), "no such token");
  }
  const UseGpu use;
  const EmbedTask task = {rows_.device_tokens(), out.rows, scale, out.data, out.stride};
  CheckCuda(cuda::Embed(matrix.stretches()[0], task, stream_), "the embedding");
}

void CudaOps::Product(const PackedMatrix& weight, ProductTask task, ConstRows x, Rows y) {
  CheckShape(x, y.rows, weight.num_inputs());
  CheckShape(y, x.rows, task.gated ? weight.num_outputs() / 2 : weight.num_outputs());
  task.x = x.data;
  task.x_stride = x.stride;
  task.num_rows = x.rows;
  task.y = y.data;
  task.y_stride = y.stride;
  const UseGpu use;
  RoundedRows rounded = {};
  for (const Matrix& stretch : MatrixOf(weight).stretches()) {
    if (!IsPrefill(stretch, task.num_rows)) {
      CheckCuda(Multiply(stretch, task, stream_), "a product");
      continue;
    }
    if (rounded.values == nullptr) {
      const std::size_t num_bytes = RoundedBytes(x.rows, x.cols);
      if (rounded_.num_bytes() < num_bytes) rounded_ = AlignedBuffer(memory_, num_bytes);
      rounded = RoundedRowsIn(rounded_.as<void>(), x.rows, x.cols);
      CheckCuda(RoundRows(task, x.cols, rounded, stream_), "a product");
    }
    CheckCuda(MultiplyPrefill(stretch, task, rounded, stream_), "a product");
  }
}

void CudaOps::MatMul(ConstRows x, const PackedMatrix& weight, const float* bias, bool accumulate,
                     Rows y) {
  Product(weight, {.bias = bias, .accumulate = accumulate}, x, y);
}

void CudaOps::NormMatMul(ConstRows x, const NormWeight& norm, const PackedMatrix& weight,
                         const float* bias, Rows y) {
  Product(weight, {.norm = norm.weight, .eps = norm.eps, .bias = bias}, x, y);
}

void CudaOps::GatedMatMul(ConstRows x, const NormWeight& norm, const GatedMlp& mlp, bool accumulate,
                          Rows y) {
  const int num_gated = mlp.down.num_inputs();
  FORERUN_CHECK(mlp.gate_up.num_outputs() == 2 * num_gated, "gates and what they gate");
  CheckShape(y, x.rows, mlp.down.num_outputs());
  const std::span<const Matrix> gate_up = MatrixOf(mlp.gate_up).stretches();
  const bool is_gated = gate_up.size() == 1 && CanBeGated(gate_up[0]);
  const int most_rows = is_gated ? kMlpRows : kApartRows;
  for (int begin = 0; begin < x.rows; begin += most_rows) {
    const int count = std::min(most_rows, x.rows - begin);
    const Rows activated = Scratch(activated_, count, num_gated);
    ProductTask task = {.norm = norm.weight, .eps = norm.eps, .bias = mlp.gate_up_bias};
    if (is_gated) {
      task.gated = true;
      task.activation = mlp.activation;
      Product(mlp.gate_up, task, x.Slice(begin, count), activated);
    } else {
      const Rows both = Scratch(gate_up_, count, 2 * num_gated);
      Product(mlp.gate_up, task, x.Slice(begin, count), both);
      GatedActivation(both, mlp.activation, activated);
    }
    Product(mlp.down, {.bias = mlp.down_bias, .accumulate = accumulate}, activated,
            y.Slice(begin, count));
  }
}

void CudaOps::RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out) {
  CheckShape(out, x.rows, x.cols);
  FORERUN_CHECK(group > 0 && x.cols % group == 0, "rows of whole groups");
  const UseGpu use;
  CheckCuda(cuda::RmsNorm(x, weight, group, eps, out, stream_), "a norm");
}

void CudaOps::RotateAndStore(Rows qkv, const QkNorms& norms, const ForwardRows& rows,
                             const float* cos_sin, int layer) {
  const KvLayer kv = CacheOf(rows).LayerOf(layer);
  const int num_heads = qkv.cols / kv.head_dim - 2 * kv.num_kv_heads;
  CheckShape(qkv, rows.num_rows(), (num_heads + 2 * kv.num_kv_heads) * kv.head_dim);
  const UseGpu use;
  CheckCuda(cuda::RotateAndStore({.qkv = qkv.data,
                                  .stride = qkv.stride,
                                  .num_rows = qkv.rows,
                                  .num_heads = num_heads,
                                  .query_norm = norms.query,
                                  .key_norm = norms.key,
                                  .eps = norms.eps,
                                  .positions = rows_.device_positions(),
                                  .slots = rows_.device_indices(RowIndices::kSlots),
                                  .cos_sin = cos_sin},
                                 kv, stream_),
            "the rotation of queries and keys");
}

const KvMove* CudaOps::UploadMoves(std::span<const KvMove> moves) {
  std::memcpy(moves_.Start(moves.size_bytes()), moves.data(), moves.size_bytes());
  return reinterpret_cast<const KvMove*>(moves_.Send());
}

void CudaOps::MoveKv(std::span<const KvMove> moves, KvCache& cache) {
  if (moves.empty()) return;
  const auto* own = dynamic_cast<const CudaKvCache*>(&cache);
  FORERUN_CHECK(own != nullptr, "a KV cache of another Ops");
  const std::int64_t num_slots = std::int64_t{cache.num_blocks()} * cache.layout().block_size;
  for (const KvMove& move : moves) {
    FORERUN_CHECK(std::min(move.from, move.to) >= 0 && std::max(move.from, move.to) < num_slots,
                  "no such slot");
  }
  const UseGpu use;
  CheckCuda(cuda::MoveKv(UploadMoves(moves), static_cast<int>(moves.size()), own->LayerOf(0),
                         cache.layout().num_layers, own->layer_bytes(), stream_),
            "moves of keys and values");
}

void CudaOps::Attention(ConstRows query, const ForwardRows& rows, RowSet which, int layer,
                        const AttentionShape& shape, Rows out) {
  const KvLayer kv = CacheOf(rows).LayerOf(layer);
  FORERUN_CHECK(shape.num_kv_heads == kv.num_kv_heads && shape.head_dim == kv.head_dim,
                "heads of another KV cache");
  CheckShape(query, out.rows, shape.num_heads * shape.head_dim);
  CheckShape(out, query.rows, query.cols);
  AttentionTask task = {.query = query.data,
                        .query_stride = query.stride,
                        .out = out.data,
                        .out_stride = out.stride,
                        .num_heads = shape.num_heads,
                        .scale = shape.scale,
                        .soft_cap = shape.soft_cap,
                        .sliding_window = shape.sliding_window,
                        .first_position = shape.first_position};
  rows_.SetAttention(which, task);
  const UseGpu use;
  CheckCuda(Attend(task, kv, stream_), "attention");
}

void CudaOps::GatedActivation(ConstRows gate_up, Activation activation, Rows out) {
  CheckShape(gate_up, out.rows, 2 * out.cols);
  const UseGpu use;
  CheckCuda(cuda::GatedActivation(gate_up, activation, out, stream_), "an activation");
}

void CudaOps::Activate(ConstRows x, const float* bias, Activation activation, Rows out) {
  CheckShape(out, x.rows, x.cols);
  const UseGpu use;
  CheckCuda(cuda::Activate(x, bias, activation, out, stream_), "an activation");
}

void CudaOps::Add(ConstRows y, Rows x) {
  CheckShape(y, x.rows, x.cols);
  const UseGpu use;
  CheckCuda(cuda::Add(y, x, stream_), "a sum");
}

void CudaOps::Scale(float factor, Rows x) {
  const UseGpu use;
  CheckCuda(cuda::Scale(factor, x, stream_), "scaled rows");
}

void CudaOps::SoftCap(Rows x, float cap) {
  const UseGpu use;
  CheckCuda(cuda::SoftCap(x, cap, stream_), "capped rows");
}

void CudaOps::Zero(Rows x) {
  const UseGpu use;
  CheckCuda(cuda::Zero(x, stream_), "rows of 0");
}

void CudaOps::Copy(ConstRows x, Rows out) {
  CheckShape(out, x.rows, x.cols);
  const UseGpu use;
  CheckCuda(cuda::GatherRows(x, /*indices=*/nullptr, out, stream_), "copied rows");
}

void CudaOps::GatherRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) {
  CheckIndices(rows.indices(indices), out, x);
  const UseGpu use;
  CheckCuda(cuda::GatherRows(x, rows_.device_indices(indices), out, stream_), "gathered rows");
}

void CudaOps::ScatterRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) {
  CheckIndices(rows.indices(indices), x, out);
  const UseGpu use;
  CheckCuda(cuda::ScatterRows(x, rows_.device_indices(indices), out, stream_), "scattered rows");
}

void CudaOps::MoveRows(std::span<const KvMove> moves, Rows x) {
  if (moves.empty()) return;
  for (const KvMove& move : moves) {
    FORERUN_CHECK(move.from >= 0 && move.from < x.rows && move.to >= 0 && move.to < x.rows,
                  "no such row");
  }
  const UseGpu use;
  CheckCuda(cuda::MoveRows(UploadMoves(moves), static_cast<int>(moves.size()), x, stream_),
            "moved rows");
}

Rows CudaOps::Scratch(AlignedBuffer& buffer, int rows, int cols) {
  const std::size_t num_bytes = sizeof(float) * static_cast<std::size_t>(rows) * cols;
  if (buffer.num_bytes() < num_bytes) buffer = AlignedBuffer(memory_, num_bytes);
  return {buffer.as<float>(), rows, cols};
}

}  // namespace forerun::cuda
