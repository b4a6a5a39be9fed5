#include "cpp/model/model_files.h"

#include "forerun/error.h"

namespace forerun {
namespace {

// Of one weight, its part of the group's scale and minimum included.
double BitsOf(WeightFormat format) {
  if (!HasIntegers(format)) return format == WeightFormat::kBFloat16 ? 16 : 32;
  const IntegerFormat integers = IntegersOf(format);
  return integers.bits + (integers.has_minimum() ? 32.0 : 16.0) / kWeightGroup;
}

ModelFormats FormatsOf(const std::string& directory, const ModelSpec& spec, DType dtype,
                       const QuantizationOptions& quantization) {
  CheckQuantization(quantization);
  CheckQuantizationMethod(quantization, directory);
  return MakeFormats(quantization, dtype, spec.tie_word_embeddings);
}

}  // namespace

void CheckKvDType(const std::string& name) {
  if (name != "auto" && name != "bfloat16" && name != "float32") {
    throw InvalidArgument("kv_cache_dtype", "'" + name + "'", "'auto', 'bfloat16' or 'float32'");
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
  return name == "bfloat16" ? DType::kBFloat16 : DType::kFloat32;
}

std::int64_t ModelFiles::EstimateWeightBytes() {
  double num_bits = 0;
  for (const std::string& name : checkpoint.names()) {
    const MatrixFormat& format = name.ends_with("embed_tokens.weight") ? formats.embedding
                                 : name.ends_with("lm_head.weight")    ? formats.head
                                                                       : formats.linear;
    const TensorView stored = checkpoint.Get(name);
    const bool has_blocks = checkpoint.BlocksOf(name) != nullptr;
    double num_elements = 1;  // weights, unless a layer of a quantized checkpoint has its own
    for (std::int64_t extent : checkpoint.ShapeOf(name)) num_elements *= extent;
    const bool is_packed = has_blocks || !IsFloat(stored.dtype);
    if (is_packed && format.keep_integers) {
      num_bits += 8.0 * stored.num_elements() * SizeOf(stored.dtype);
      continue;
    }
    if (!has_blocks && stored.dtype == DType::kInt32) num_elements *= 8;  // of 4 bits
    num_bits += num_elements * BitsOf(format.format);
  }
  return static_cast<std::int64_t>(num_bits / 8);
}

std::unique_ptr<Transformer> ModelFiles::Load(Ops& ops, const TransformerLimits& limits,
                                              const FeatureSpec& features) {
  return std::make_unique<Transformer>(spec, LoadWeights(spec, checkpoint, formats, ops), ops,
                                       limits, features);
}

}  // namespace forerun
