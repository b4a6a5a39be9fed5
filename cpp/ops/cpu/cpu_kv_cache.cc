#include "cpp/ops/cpu/cpu_kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpp/kv/slot_map.h"
#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// Writes the key, or the value, of a token and head: channel i goes to channels[i * stride].
void StoreChannels(const float* x, int head_dim, float* channels, std::int64_t stride,
                   std::byte* /*scale*/) {
  for (int i = 0; i < head_dim; ++i) channels[i * stride] = x[i];
}
void StoreChannels(const float* x, int head_dim, std::uint16_t* channels, std::int64_t stride,
                   std::byte* /*scale*/) {
  for (int i = 0; i < head_dim; ++i) channels[i * stride] = FloatToBFloat16(x[i]);
}
// To nearest, ties to even: a float of this size has no room for fractions. REQUIRES: |x| < 128.
std::int8_t RoundToInt8(float x) {
  constexpr float kNoFractions = 0x1.8p23f;
  return static_cast<std::int8_t>(static_cast<int>((x + kNoFractions) - kNoFractions));
}
// As multiples of a scale, from -127 to 127.
void StoreChannels(const float* x, int head_dim, std::int8_t* channels, std::int64_t stride,
                   std::byte* scale) {
  float largest = 0.0f, zero = 0.0f;
  for (int i = 0; i < head_dim; ++i) {
    largest = std::max(largest, std::abs(x[i]));
    zero += x[i] - x[i];
  }
  float step = 0.0f, inverse = 0.0f;  // so stay those too small to be divided by
  if (zero != 0.0f) {
    // No integer stands for a NaN or an infinity: all channels become NaN.
    step = std::numeric_limits<float>::quiet_NaN();
  } else if (largest / 127.0f >= std::numeric_limits<float>::min()) {
    step = largest / 127.0f;
    inverse = 127.0f / largest;
  }
  for (int i = 0; i < head_dim; ++i) {
    channels[i * stride] = inverse > 0.0f ? RoundToInt8(x[i] * inverse) : std::int8_t{0};
  }
  std::memcpy(scale, &step, sizeof(step));
}

template <typename T>
void StoreSequence(ConstRows keys, ConstRows values, const SequenceRows& sequence, int layer,
                   int head, const CpuKvCache& cache) {
  const KvLayout& layout = cache.layout();
  const int column = head * layout.head_dim;
  for (int i = 0; i < sequence.num_rows; ++i) {
    const std::int64_t cache_slot =
        CacheSlot(sequence.block_table, sequence.num_context + i, layout.block_size);
    const KvOffsets offsets = cache.OffsetsOf(cache_slot, head);
    const int row = sequence.row_begin + i;
    const auto store = [&](ConstRows x, std::byte* to, std::int64_t offset, std::int64_t stride) {
      StoreChannels(x.row(row) + column, layout.head_dim, reinterpret_cast<T*>(to) + offset, stride,
                    to + offsets.scale);
    };
    store(keys, cache.keys(layer), offsets.key, layout.block_size);
    store(values, cache.values(layer), offsets.value, 1);
  }
}

template <typename T>
void MoveSlots(std::span<const KvMove> moves, int layer, const CpuKvCache& cache) {
  const KvLayout& layout = cache.layout();
  T* keys = reinterpret_cast<T*>(cache.keys(layer));
  T* values = reinterpret_cast<T*>(cache.values(layer));
  for (const KvMove& move : moves) {
    for (int head = 0; head < layout.num_kv_heads; ++head) {
      const KvOffsets from = cache.OffsetsOf(move.from, head), to = cache.OffsetsOf(move.to, head);
      for (int i = 0; i < layout.head_dim; ++i) {
        keys[to.key + std::int64_t{i} * layout.block_size] =
            keys[from.key + std::int64_t{i} * layout.block_size];
      }
      std::copy_n(values + from.value, layout.head_dim, values + to.value);
      if (layout.is_int8()) {
        std::copy_n(keys + from.scale, KvLayout::kScaleBytes, keys + to.scale);
        std::copy_n(values + from.scale, KvLayout::kScaleBytes, values + to.scale);
      }
    }
  }
}

}  // namespace

CpuKvCache::CpuKvCache(const KvLayout& layout, int num_blocks)
    : KvCache(layout, num_blocks),
      layer_bytes_(num_blocks * layout.block_elements() * layout.element_bytes),
      data_(HostMemory(), 2 * layout.num_layers * layer_bytes_ + kOverreadBytes) {}

std::unique_ptr<KvCache> CpuOps::MakeKvCache(const KvLayout& layout, int num_blocks) {
  FORERUN_CHECK(
      num_blocks >= 0 && layout.num_layers > 0 && layout.num_kv_heads > 0 && layout.head_dim > 0,
      "an empty KV cache");
  FORERUN_CHECK(layout.block_size > 0 && layout.block_size % kKvBlockGranularity == 0,
                "the block size must be a multiple of 16");
  FORERUN_CHECK(layout.element_bytes == 1 || layout.element_bytes == 2 || layout.element_bytes == 4,
                "KV elements are int8, bfloat16 or float32");
  return std::make_unique<CpuKvCache>(layout, num_blocks);
}

void CpuOps::StoreKv(ConstRows keys, ConstRows values, std::span<const SequenceRows> sequences,
                     int layer, KvCache& cache) {
  const auto* kv = dynamic_cast<const CpuKvCache*>(&cache);
  FORERUN_CHECK(kv != nullptr, "a KV cache of another Ops");
  const KvLayout& layout = kv->layout();
  FORERUN_CHECK(layer >= 0 && layer < layout.num_layers, "no such layer");
  FORERUN_CHECK(keys.rows == values.rows && keys.cols == values.cols &&
                    keys.cols == layout.num_kv_heads * layout.head_dim,
                "keys or values do not fit the KV cache");
  CheckSequences(sequences, cache, keys.rows);
  // By heads: rows of one block share cache lines of its keys.
  const auto store = [&](int head) {
    for (const SequenceRows& sequence : sequences) {
      WithKvElement(layout, [&]<typename T>(T) {
        StoreSequence<T>(keys, values, sequence, layer, head, *kv);
      });
    }
  };
  if (keys.rows < 32) {
    for (int head = 0; head < layout.num_kv_heads; ++head) store(head);
  } else {
    team_.Run(layout.num_kv_heads, store);
  }
}

void CpuOps::RotateAndStore(Rows qkv, const QkNorms& norms, const ForwardRows& rows,
                            const float* cos_sin, int layer) {
  FORERUN_CHECK(rows.cache() != nullptr, "a pass without keys and values");
  const KvLayout& layout = rows.cache()->layout();
  const int head_dim = layout.head_dim, kv_cols = layout.num_kv_heads * head_dim;
  const int query_cols = qkv.cols - 2 * kv_cols;
  FORERUN_CHECK(qkv.rows == rows.num_rows() && query_cols > 0, "qkv does not fit the KV cache");
  const Rows query = qkv.Columns(0, query_cols), key = qkv.Columns(query_cols, kv_cols);
  if (norms.query != nullptr) RmsNorm(query, norms.query, head_dim, norms.eps, query);
  if (norms.key != nullptr) RmsNorm(key, norms.key, head_dim, norms.eps, key);
  // Query and key heads lie side by side and turn alike.
  Rope(qkv.Columns(0, query_cols + kv_cols), head_dim, rows.positions(), cos_sin);
  StoreKv(key, qkv.Columns(query_cols + kv_cols, kv_cols), rows.sequences(RowSet::kAll), layer,
          *rows.cache());
}

void CpuOps::MoveKv(std::span<const KvMove> moves, KvCache& cache) {
  if (moves.empty()) return;
  const auto* kv = dynamic_cast<const CpuKvCache*>(&cache);
  FORERUN_CHECK(kv != nullptr, "a KV cache of another Ops");
  const KvLayout& layout = kv->layout();
  const std::int64_t num_slots = std::int64_t{kv->num_blocks()} * layout.block_size;
  for (const KvMove& move : moves) {
    FORERUN_CHECK(std::min(move.from, move.to) >= 0 && std::max(move.from, move.to) < num_slots,
                  "no such slot");
  }
  team_.Run(layout.num_layers, [&](int layer) {
    WithKvElement(layout, [&]<typename T>(T) { MoveSlots<T>(moves, layer, *kv); });
  });
}

}  // namespace forerun
