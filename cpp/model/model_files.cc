#include "cpp/model/model_files.h"

#include "cpp/ops/cpu/weight_tile.h"
#include "forerun/error.h"

namespace forerun {
namespace {

ModelFormats FormatsOf(const std::string& directory, const ModelSpec& spec, DType dtype,
                       const QuantizationOptions& quantization) {
  CheckQuantization(quantization);
  CheckQuantizationMethod(quantization, directory);
  return MakeFormats(quantization, dtype, spec.tie_word_embeddings);
}

}  // namespace

void CheckKvDType(const std::string& name) {
  if (name != "auto" && name != "bfloat16" && name != "float32" && name != "int8") {
    throw InvalidArgument("kv_cache_dtype", "'" + name + "'",
                          "'auto', 'bfloat16', 'float32' or 'int8'");
  }
}

ModelFiles::ModelFiles(const std::string& directory, const std::string& dtype_name,
                       const QuantizationOptions& quantization)
    : spec(ReadModelSpec(directory)),
      checkpoint(directory),
      dtype(ResolveDType(dtype_name, spec, checkpoint)),
      formats(FormatsOf(directory, spec, dtype, quantization)) {}

DType ModelFiles::KvDType(const std::string& name) const {
  CheckKvDType(name);
  if (name == "auto") return dtype;
  if (name == "int8") return DType::kInt8;
  return name == "bfloat16" ? DType::kBFloat16 : DType::kFloat32;
}

std::int64_t ModelFiles::EstimateWeightBytes() {
  std::int64_t num_bytes = 0;
  for (const auto& [name, num_outputs, num_inputs, stored] :
       WeightReader(checkpoint).FindMatrices()) {
    const MatrixFormat& packed = name.ends_with("embed_tokens.weight") ? formats.embedding
                                 : name.ends_with("lm_head.weight")    ? formats.head
                                                                       : formats.linear;
    const WeightFormat format = packed.keep_integers && stored ? *stored : packed.format;
    num_bytes += TileBytes(format, num_inputs) * ((num_outputs + kLanes - 1) / kLanes);
  }
  return num_bytes;
}

std::unique_ptr<Transformer> ModelFiles::Load(Ops& ops, const TransformerLimits& limits,
                                              const FeatureSpec& features) {
  return std::make_unique<Transformer>(spec, LoadWeights(spec, checkpoint, formats, ops), ops,
                                       limits, features);
}

}  // namespace forerun
