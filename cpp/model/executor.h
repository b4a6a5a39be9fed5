// The execution boundary: what the engine asks of a model. Tests script it.
#ifndef FORERUN_CPP_MODEL_EXECUTOR_H_
#define FORERUN_CPP_MODEL_EXECUTOR_H_

#include <span>

#include "cpp/ops/ops.h"
#include "forerun/types.h"

namespace forerun {

// One forward pass. Sequences cover the rows in order and without gaps.
struct ForwardBatch {
  std::span<const TokenId> tokens;  // [num_rows]
  std::span<const SequenceRows> sequences;
  std::span<const std::int32_t> logits_rows;  // ascending rows whose logits are wanted
  // As in ForwardData.
  std::span<const std::int32_t> sources = {};
  DeviceTokens device_tokens = {};
};

class ModelExecutor {
 public:
  virtual ~ModelExecutor() = default;

  virtual int vocab_size() const = 0;

  // As many rows as a pass of this many wanted rows is filled up to, if no prompt is among them.
  virtual int PaddedRows(int num_rows) const { return num_rows; }

  // Writes keys and values of every row into its slot and returns logits [logits_rows.size(),
  // vocab_size], valid until the next call. The logits of a row predict the token after it.
  virtual ConstRows Forward(const ForwardBatch& batch) = 0;

  // False: the last pass took longer than others of as many rows do, since a device prepared for
  // them.
  virtual bool took_usual_time() const { return true; }

  // Copies tokens' keys and values to other slots, one move after the other.
  virtual void MoveKv(std::span<const KvMove> moves) = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_EXECUTOR_H_
