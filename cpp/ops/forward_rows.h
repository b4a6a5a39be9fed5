// The rows of one forward pass: what the host knows of them, and what the operations read.
//
// Ops::Begin takes a pass's token ids, sequences and row indices once, so that a device needs one
// upload, and returns ForwardRows, which the operations take in place of host memory.
#ifndef FORERUN_CPP_OPS_FORWARD_ROWS_H_
#define FORERUN_CPP_OPS_FORWARD_ROWS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/ops/sequence_rows.h"
#include "forerun/types.h"

namespace forerun {

class KvCache;
struct TopToken;

// Tokens that are in the backend's memory and that the host may not know yet: that of row i is
// top[sources[i]], and ids[] of it where `ids` is not null. Of a row that has none, token 0.
struct DeviceTokens {
  const TopToken* top = nullptr;
  const TokenId* ids = nullptr;
};

// Borrowed until the pass is over.
struct ForwardData {
  std::span<const TokenId> tokens;  // [num_rows]
  // Where the rows' keys and values are. They cover the rows, in order and without gaps. Null and
  // empty for a model without keys and values.
  KvCache* cache = nullptr;
  std::span<const SequenceRows> sequences = {};
  std::span<const std::int32_t> wanted = {};   // ascending rows that the last layer is run for
  std::span<const std::int32_t> sources = {};  // [num_rows] rows of another matrix, to gather
  int num_heads = 0;                           // of the queries in Ops::Attention, if it is called
  DeviceTokens device_tokens = {};             // with `top`, `tokens` only counts the rows
  bool is_kept = false;                        // the pass is run by PassGraphs; all rows are wanted
};

enum class RowSet { kAll, kWanted };
enum class RowIndices {
  kWanted,
  kSources,
  kSlots,  // [num_rows] the slot of the cache of every row
};

// Valid until the next Begin of its Ops. A device's Ops derives from it to add where it has put
// what its kernels read.
class ForwardRows {
 public:
  // Passes of at most `max_rows` rows allocate nothing.
  void Reserve(int max_rows);
  // Throws InternalError unless the sequences cover the rows with slots of the cache, and the
  // wanted rows ascend.
  void Set(const ForwardData& data);

  int num_rows() const { return static_cast<int>(data_.tokens.size()); }
  std::span<const TokenId> tokens() const { return data_.tokens; }
  // Null in a pass without keys and values.
  KvCache* cache() const { return data_.cache; }
  int num_heads() const { return data_.num_heads; }
  bool HasAllWanted() const { return data_.wanted.size() == data_.tokens.size(); }
  // Of every row, in its own sequence.
  std::span<const std::int32_t> positions() const { return positions_; }
  std::span<const std::int32_t> indices(RowIndices which) const;
  // The sequences of all rows, or those of the wanted rows alone.
  std::span<const SequenceRows> sequences(RowSet which) const {
    return which == RowSet::kAll ? data_.sequences : wanted_sequences_;
  }

 private:
  void SelectSequences();

  ForwardData data_;
  std::vector<std::int32_t> positions_, slots_;
  std::vector<SequenceRows> wanted_sequences_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_FORWARD_ROWS_H_
