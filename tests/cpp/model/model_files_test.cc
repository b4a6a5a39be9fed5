// What is said of a checkpoint before its weights are packed.
#include "cpp/model/model_files.h"

#include <gtest/gtest.h>

#include "cpp/ops/cpu/cpu_backend.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

constexpr char kSizes[] = R"("model_type": "llama", "vocab_size": 64, "hidden_size": 96,
    "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512)";

// config.json of layers with 8 bits in groups, as compressed-tensors has them.
std::string QuantizedConfig(int group_size) {
  return std::string("{") + kSizes + R"(, "quantization_config": {
      "quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": {
      "targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "symmetric": true,
      "strategy": "group", "group_size": )" +
         std::to_string(group_size) + "}}}}}";
}

void WriteQuantized(const ModelDirectory& directory, int group_size) {
  directory.Write("config.json", QuantizedConfig(group_size));
  std::vector<NamedTensor> tensors;
  for (NamedTensor& tensor : TinyTensors(ReadModelSpec(directory.path()), 3)) {
    if (tensor.name.find("_proj.weight") != std::string::npos) {
      const std::int64_t outputs = tensor.shape[0], inputs = tensor.shape[1];
      const std::int64_t groups = (inputs + group_size - 1) / group_size;
      tensors.push_back(BFloat16Tensor(tensor.name + "_scale", {outputs, groups},
                                       std::vector<float>(outputs * groups, 0.25f)));
      tensor = {tensor.name, "I8", tensor.shape, std::string(outputs * inputs, '\3')};
    }
    tensors.push_back(std::move(tensor));
  }
  directory.WriteTensors(tensors);
}

void ExpectPlannedAsPacked(const std::string& directory, const QuantizationOptions& quantization,
                           WeightFormat linear) {
  ModelFiles files(directory, "bfloat16", quantization);
  const std::int64_t planned = files.EstimateWeightBytes();
  CpuBackend backend(1);
  const ModelWeights packed =
      LoadWeights(files.spec, files.checkpoint, files.formats, backend.ops());
  EXPECT_EQ(planned, packed.num_bytes());
  EXPECT_EQ(packed.BytesByFormat().count(linear), 1u);
}

TEST(ModelFilesTest, PlansTheBytesThatArePacked) {
  const QuantizationOptions as_stored, to_int4 = {"int4", {}, "int8"}, floats = {"none"};
  for (int group_size : {32, 24}) {
    SCOPED_TRACE(group_size);
    ModelDirectory directory;
    WriteQuantized(directory, group_size);
    // No format has groups of 24.
    ExpectPlannedAsPacked(directory.path(), as_stored,
                          group_size == 32 ? WeightFormat::kInt8 : WeightFormat::kBFloat16);
    ExpectPlannedAsPacked(directory.path(), to_int4, WeightFormat::kInt4);
    ExpectPlannedAsPacked(directory.path(), floats, WeightFormat::kBFloat16);
  }
  ModelDirectory directory;
  WriteTinyModel(directory, std::string("{") + kSizes + "}");
  ExpectPlannedAsPacked(directory.path(), as_stored, WeightFormat::kBFloat16);
  ExpectPlannedAsPacked(directory.path(), to_int4, WeightFormat::kInt4);
  ExpectPlannedAsPacked(directory.path(), {{}, "int4", {}}, WeightFormat::kInt4);
  ExpectPlannedAsPacked(directory.path(), {{}, {}, "int8"}, WeightFormat::kInt8);
}

}  // namespace
}  // namespace forerun
