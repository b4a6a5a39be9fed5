// A model that predicts the token after each of its rows.
//
// A row consumes a token in its slot, and either the target's features of the position before
// (known tokens) or what an earlier row put out (drafted ones).
#ifndef FORERUN_CPP_DRAFT_NEURAL_DRAFT_NETWORK_H_
#define FORERUN_CPP_DRAFT_NEURAL_DRAFT_NETWORK_H_

#include <cstdint>
#include <limits>
#include <span>

#include "cpp/ops/ops.h"
#include "cpp/tensor/tensor.h"
#include "forerun/types.h"

namespace forerun {

// Rows of one forward, as in ForwardBatch.
struct DraftBatch {
  std::span<const TokenId> tokens;  // [rows]
  std::span<const SequenceRows> sequences;
  std::span<const std::int32_t> logits_rows;  // ascending
  // [rows]: where a row's feature is, in the target's feature store at depth 0, else among the
  // logits rows of the forward before.
  std::span<const std::int32_t> sources;
  int depth = 0;  // number of drafted tokens that lead to the rows, their own included
  DeviceTokens device_tokens = {};  // as in ForwardData
};

class DraftNetwork {
 public:
  virtual ~DraftNetwork() = default;

  // Makes room for keys and values in this many blocks of the target's, where it has some.
  virtual void ReserveBlocks(int /*num_blocks*/) {}

  // Logits [logits_rows.size(), vocabulary], valid until the next call.
  virtual ConstRows Forward(const DraftBatch& batch) = 0;

  // The target's ids of the logits; empty where they are their own numbers.
  virtual std::span<const TokenId> target_ids() const { return {}; }

  // Of the first token that has a row: 1 where a row needs the position before it.
  virtual int first_slot() const { return 1; }

  // Whether rows leave keys and values in their slots. Otherwise only the last known token has a
  // row.
  virtual bool has_kv() const { return true; }

  // Whether the candidates at a depth do not depend on the draft tokens before.
  virtual bool ignores_path() const { return false; }

  // The most tokens of a path.
  virtual int max_depth() const { return std::numeric_limits<int>::max(); }
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_DRAFT_NETWORK_H_
