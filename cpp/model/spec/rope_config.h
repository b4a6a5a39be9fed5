// Rotary embeddings as config.json describes them: the keys `rope_theta` and `rope_scaling` of
// older checkpoints and the `rope_parameters` of newer ones.
#ifndef FORERUN_CPP_MODEL_SPEC_ROPE_CONFIG_H_
#define FORERUN_CPP_MODEL_SPEC_ROPE_CONFIG_H_

#include "cpp/model/checkpoint/json.h"
#include "cpp/model/spec/spec.h"

namespace forerun {

// One rope for all layers.
RopeSpec ReadRope(const JsonObject& config, int max_position);

// Gemma 3: layers with full and with sliding attention turn at different rates.
struct LayerTypeRopes {
  RopeSpec full, sliding;
};
LayerTypeRopes ReadLayerTypeRopes(const JsonObject& config, int max_position);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_SPEC_ROPE_CONFIG_H_
