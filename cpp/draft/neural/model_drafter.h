// Drafters that are models: from a checkpoint to a part of an engine.
#ifndef FORERUN_CPP_DRAFT_NEURAL_MODEL_DRAFTER_H_
#define FORERUN_CPP_DRAFT_NEURAL_MODEL_DRAFTER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cpp/draft/drafter.h"
#include "cpp/draft/formats/draft_head.h"
#include "cpp/draft/formats/draft_vocabulary.h"
#include "cpp/draft/neural/autoregressive.h"
#include "cpp/draft/neural/draft_network.h"
#include "cpp/draft/neural/draft_recorder.h"
#include "cpp/model/features.h"
#include "cpp/model/transformer.h"
#include "cpp/ops/backend.h"
#include "forerun/options.h"

namespace forerun {

// A model drafter's checkpoint, understood before the target is built: the target must know which
// features to keep, and the memory plan what a block costs.
class ModelDrafterSource {
 public:
  // REQUIRES: a method with a model, resolved by ResolveDrafter. Throws CheckpointError or
  // InvalidArgument.
  ModelDrafterSource(const SpeculativeOptions& options, const ModelSpec& target,
                     const std::string& target_directory,
                     const QuantizationOptions& target_quantization = {});

  ModelDrafterSource(const ModelDrafterSource&) = delete;
  ModelDrafterSource& operator=(const ModelDrafterSource&) = delete;

  const FeatureSpec& features() const { return features_; }
  // The most tokens of a level of a draft that others follow: a forward has a row for each.
  int num_level_rows() const;
  // Beside the target's keys and values, per block.
  std::int64_t block_bytes(DType kv_dtype, int block_size) const;

  // `dtype` is that of matrices that are not integers. `limits` are the target's, with room for
  // all rows of a level, which have logits. The target and the backend must outlive the drafter,
  // and so must the recorder, which may be null.
  std::unique_ptr<Drafter> Load(const Transformer& target, Backend& backend,
                                const TransformerLimits& limits, DType dtype,
                                DraftRecorder* recorder);
  // Makes room for the keys and values of the drafter that was loaded, where limits.num_blocks were
  // 0. REQUIRES: it lives.
  void ReserveBlocks(int num_blocks) { loaded_->ReserveBlocks(num_blocks); }

 private:
  std::unique_ptr<DraftNetwork> LoadNetwork(const Transformer& target, Ops& ops,
                                            const TransformerLimits& limits, DType dtype);
  std::unique_ptr<DraftNetwork> LoadModel(const ModelFormats& formats, Ops& ops,
                                          const TransformerLimits& limits);

  const SpeculativeOptions options_;
  const ModelDrafterOptions& model_options_;  // of options_
  const int target_hidden_size_;
  const std::string target_directory_;
  const QuantizationOptions target_quantization_;
  const DraftVocabulary vocabulary_;
  FeatureSpec features_;
  std::unique_ptr<DraftHeadReader> head_;  // of eagle, eagle3 and mtp
  std::optional<ModelSpec> model_;         // of draft_model
  AutoregressiveDrafter* loaded_ = nullptr;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_MODEL_DRAFTER_H_
