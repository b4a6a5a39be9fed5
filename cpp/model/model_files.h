// A model directory that is opened but not loaded: memory is planned before weights are read.
#ifndef FORERUN_CPP_MODEL_MODEL_FILES_H_
#define FORERUN_CPP_MODEL_MODEL_FILES_H_

#include <memory>
#include <string>

#include "cpp/model/checkpoint/safetensors.h"
#include "cpp/model/features.h"
#include "cpp/model/spec/spec.h"
#include "cpp/model/transformer.h"

namespace forerun {

struct ModelFiles {
  // `dtype_name`: "auto", "bfloat16" or "float32". Throws CheckpointError or InvalidArgument.
  ModelFiles(const std::string& directory, const std::string& dtype_name);

  // The Ops must outlive the model. Throws CheckpointError.
  std::unique_ptr<Transformer> Load(Ops& ops, const TransformerLimits& limits,
                                    const FeatureSpec& features = {});

  ModelSpec spec;
  Checkpoint checkpoint;
  DType dtype;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_MODEL_FILES_H_
