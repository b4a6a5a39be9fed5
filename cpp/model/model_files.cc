#include "cpp/model/model_files.h"

#include "cpp/model/weights.h"

namespace forerun {

ModelFiles::ModelFiles(const std::string& directory, const std::string& dtype_name)
    : spec(ReadModelSpec(directory)),
      checkpoint(directory),
      dtype(ResolveDType(dtype_name, spec, checkpoint)) {}

std::unique_ptr<Transformer> ModelFiles::Load(Ops& ops, const TransformerLimits& limits,
                                              const FeatureSpec& features) {
  return std::make_unique<Transformer>(spec, LoadWeights(spec, checkpoint, dtype, ops), ops, limits,
                                       features);
}

}  // namespace forerun
