// The weights of one tensor, as floats.
#ifndef FORERUN_CPP_MODEL_TENSOR_VALUES_H_
#define FORERUN_CPP_MODEL_TENSOR_VALUES_H_

#include <cstdint>
#include <string>
#include <vector>

namespace forerun {

struct TensorValues {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// What a model in float32 computes with: a matrix is packed and unpacked again. Throws
// CheckpointError for a tensor that is not there, or is neither a matrix nor a vector of floats.
TensorValues ReadTensorValues(const std::string& directory, const std::string& name);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_TENSOR_VALUES_H_
