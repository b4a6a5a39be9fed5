#include "cpp/model/logits.h"

#include "cpp/model/decoder_stack.h"

namespace forerun {

ConstRows ComputeLogits(Ops& ops, ConstRows states, const PackedMatrix& head, LogitsShape shape,
                        const AlignedBuffer& scratch) {
  const Rows logits = RowsOf(scratch, states.rows, head.num_outputs());
  if (states.rows == 0) return logits;
  ops.MatMul(states, head, nullptr, /*accumulate=*/false, logits);
  if (shape.soft_cap > 0.0f) ops.SoftCap(logits, shape.soft_cap);
  if (shape.scale != 1.0f) ops.Scale(shape.scale, logits);
  return logits;
}

}  // namespace forerun
