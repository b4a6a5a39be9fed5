#include "cpp/kv/slot_map.h"
#include "cpp/ops/kv_cache.h"
#include "cpp/util/check.h"

namespace forerun {

void CheckSequences(std::span<const SequenceRows> sequences, const KvCache& cache, int num_rows) {
  for (const SequenceRows& sequence : sequences) {
    FORERUN_CHECK(sequence.row_begin >= 0 && sequence.num_rows >= 0 && sequence.num_context >= 0 &&
                      std::int64_t{sequence.row_begin} + sequence.num_rows <= num_rows,
                  "a sequence's rows lie outside the batch");
    FORERUN_CHECK(sequence.IsTreeSound(), "a draft tree does not fit its rows");
    const std::int64_t num_slots = std::int64_t{sequence.num_context} + sequence.num_rows;
    const std::int64_t num_blocks = NumBlocksFor(num_slots, cache.layout().block_size);
    FORERUN_CHECK(std::ssize(sequence.block_table) >= num_blocks, "a block table is too short");
    for (BlockId block : sequence.block_table.first(num_blocks)) {
      FORERUN_CHECK(block >= 0 && block < cache.num_blocks(), "no such block");
    }
  }
}

}  // namespace forerun
