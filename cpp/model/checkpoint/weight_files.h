// Which files of a Hugging Face model directory hold its weights: one rule for all readers.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_WEIGHT_FILES_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_WEIGHT_FILES_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace forerun {

struct WeightFiles {
  std::vector<std::string> names;  // sorted; empty: there are none
  bool are_pickled = false;        // written by torch.save, not in safetensors
  std::string index_name;          // empty: none, and all tensors of all files count
  // File by tensor, as the index says: tensors that it does not list are none of the model's.
  std::map<std::string, std::string> file_of_tensor;
};

// The first of these that is there: model.safetensors, the shards of
// model.safetensors.index.json, pytorch_model.bin, the shards of pytorch_model.bin.index.json. Else
// all *.safetensors, or all *.bin and *.pt: heads are published under names of their own, such as
// medusa_lm_head.safetensors. Other files beside them (adapters, optimizers, the originals of a
// converted model) are not read. Throws CheckpointError for a damaged index or no directory.
WeightFiles FindWeightFiles(const std::string& directory);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_WEIGHT_FILES_H_
