// Integer weights that share scales, and zero points, in groups of their inputs.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_GROUPED_INTEGERS_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_GROUPED_INTEGERS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpp/model/checkpoint/quantization_config.h"
#include "cpp/model/checkpoint/stored_integers.h"

namespace forerun {

// One linear layer's tensors as a layout names and shapes them; views without data are absent.
struct GroupedTensors {
  std::string name;  // of the layer, for errors
  int num_outputs = 0;
  int num_inputs = 0;
  TensorView weights, scales, zeros;
  TensorView groups;  // int32 [num_inputs]: the group of each input; absent: they are in order
};

// What a layout calls a layer's tensors, after "layer."; empty: it has none.
struct TensorNames {
  const char* weights;
  const char* scales;
  const char* zeros;
  const char* groups;
};
TensorNames NamesOf(LinearLayout layout);

// The shapes that these tensors have. REQUIRES: a layout with integers.
struct GroupedShapes {
  std::vector<std::int64_t> weights, scales, zeros;
};
// Throws CheckpointError for sizes that the layout cannot hold.
GroupedShapes ShapesOf(const LinearQuantization& quantization, const std::string& name,
                       int num_outputs, int num_inputs);

// [outputs, inputs] of a layer whose weights have this stored shape; a partly used int32 counts
// whole. Empty: no such layer has that.
std::vector<std::int64_t> LayerShape(const LinearQuantization& quantization,
                                     const std::vector<std::int64_t>& stored);

// A weight is scale * (integer - zero), in float32. Throws CheckpointError for tensors whose values
// contradict the quantization. REQUIRES: shapes as ShapesOf says.
std::unique_ptr<StoredIntegers> OpenGroupedIntegers(const LinearQuantization& quantization,
                                                    const GroupedTensors& tensors);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_GROUPED_INTEGERS_H_
