// The last step of every model and draft network: from hidden states to logits.
#ifndef FORERUN_CPP_MODEL_LOGITS_H_
#define FORERUN_CPP_MODEL_LOGITS_H_

#include "cpp/ops/ops.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

struct LogitsShape {
  float soft_cap = 0.0f;  // l -> cap * tanh(l / cap); 0: none
  float scale = 1.0f;     // after the cap
};

// The logits [states.rows, head.num_outputs()], in `scratch`, which must have room for them.
ConstRows ComputeLogits(Ops& ops, ConstRows states, const PackedMatrix& head, LogitsShape shape,
                        const AlignedBuffer& scratch);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_LOGITS_H_
