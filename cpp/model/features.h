// Hidden states of a model, kept slot by slot beside its keys and values, for drafters that read
// them. They move, are shared and are cached together with the keys and values of their slot.
#ifndef FORERUN_CPP_MODEL_FEATURES_H_
#define FORERUN_CPP_MODEL_FEATURES_H_

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "cpp/kv/slot_map.h"
#include "cpp/ops/ops.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

// The features of a position, side by side.
struct FeatureSpec {
  // Auxiliary hidden states: the residual stream after the first n layers; 0 is the embedding.
  std::vector<int> aux_layers;
  bool final_norm = false;  // after these, the normed state that the output head reads

  bool empty() const { return aux_layers.empty() && !final_norm; }
  // Whether all rows must go through all layers, and not only those whose logits are wanted.
  bool reads_last_layer(int num_layers) const {
    return final_norm || std::ranges::find(aux_layers, num_layers) != aux_layers.end();
  }
  int width(int hidden_size) const {
    return hidden_size * (static_cast<int>(aux_layers.size()) + (final_norm ? 1 : 0));
  }
  // Of one slot.
  std::int64_t num_bytes(int hidden_size) const {
    return std::int64_t{width(hidden_size)} * static_cast<std::int64_t>(sizeof(float));
  }
};

class FeatureStore {
 public:
  // The Ops must outlive it.
  FeatureStore(FeatureSpec spec, int hidden_size, int num_blocks, int block_size, Ops& ops);

  // Makes room for this many blocks, empty.
  void ReserveBlocks(int num_blocks);

  const FeatureSpec& spec() const { return spec_; }
  // [blocks * block_size, width]: one row per slot of the cache.
  ConstRows rows() const { return rows_; }
  std::int32_t RowOf(std::span<const BlockId> block_table, int slot) const {
    return static_cast<std::int32_t>(CacheSlot(block_table, slot, block_size_));
  }

  // Keeps the residual stream of all rows after `num_layers` layers, if it is an auxiliary one.
  void KeepResidual(int num_layers, ConstRows hidden, const ForwardRows& rows);
  void KeepFinal(ConstRows normed, const ForwardRows& rows);
  void Move(std::span<const KvMove> moves) { ops_.MoveRows(moves, rows_); }

 private:
  const FeatureSpec spec_;
  const int hidden_size_;
  const int block_size_;
  Ops& ops_;
  AlignedBuffer memory_;
  Rows rows_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_FEATURES_H_
