// A model directory that is opened but not loaded: memory is planned before weights are read.
#ifndef FORERUN_CPP_MODEL_MODEL_FILES_H_
#define FORERUN_CPP_MODEL_MODEL_FILES_H_

#include <cstdint>
#include <memory>
#include <string>

#include "cpp/model/checkpoint/safetensors.h"
#include "cpp/model/features.h"
#include "cpp/model/spec/spec.h"
#include "cpp/model/transformer.h"
#include "cpp/model/weights.h"
#include "forerun/options.h"

namespace forerun {

// Throws InvalidArgument unless it is "auto", "bfloat16", "float32" or "int8".
void CheckKvDType(const std::string& name);

struct ModelFiles {
  // `dtype_name`: "auto", "bfloat16" or "float32". Throws CheckpointError or InvalidArgument.
  ModelFiles(const std::string& directory, const std::string& dtype_name,
             const QuantizationOptions& quantization = {});

  // "auto": that of the weights. Throws InvalidArgument.
  DType KvDType(const std::string& name) const;
  // What the matrices take when they are packed, each by itself: layers that have to be unpacked to
  // floats count as floats. Throws CheckpointError.
  std::int64_t EstimateWeightBytes();

  // The Ops must outlive the model. Throws CheckpointError.
  std::unique_ptr<Transformer> Load(Ops& ops, const TransformerLimits& limits,
                                    const FeatureSpec& features = {});

  ModelSpec spec;
  Checkpoint checkpoint;
  DType dtype;  // of the KV cache, unless told otherwise, and of matrices that are not integers
  ModelFormats formats;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_MODEL_FILES_H_
