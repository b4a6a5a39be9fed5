#include "cpp/model/logits.h"

#include "cpp/model/decoder_stack.h"

namespace forerun {

ConstRows ComputeLogits(Ops& ops, ConstRows states, const PackedMatrix& head, LogitsShape shape,
                        AlignedBuffer& memory) {
  const int num_logits = head.num_outputs();
  if (states.rows == 0) return RowsOf(memory, 0, num_logits);
  memory.Grow(sizeof(float) * static_cast<std::size_t>(states.rows) * num_logits);
  const Rows logits = RowsOf(memory, states.rows, num_logits);
  ops.MatMul(states, head, nullptr, /*accumulate=*/false, logits);
  if (shape.soft_cap > 0.0f) ops.SoftCap(logits, shape.soft_cap);
  if (shape.scale != 1.0f) ops.Scale(shape.scale, logits);
  return logits;
}

}  // namespace forerun
