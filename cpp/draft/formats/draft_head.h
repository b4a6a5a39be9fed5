// Decoder layers of a drafter's own that read the target's features: EAGLE, EAGLE-3 and MTP, as
// their checkpoints are published.
//
// A row consumes a token x[s] and the target's features of the position before, s - 1, and predicts
// x[s + 1]. Its keys and values lie in slot s, so that they are a function of the tokens up to s,
// as those of the target are. Slot 0 stays empty: nothing comes before the first token.
#ifndef FORERUN_CPP_DRAFT_FORMATS_DRAFT_HEAD_H_
#define FORERUN_CPP_DRAFT_FORMATS_DRAFT_HEAD_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpp/draft/formats/detect.h"
#include "cpp/draft/formats/draft_vocabulary.h"
#include "cpp/model/checkpoint/safetensors.h"
#include "cpp/model/checkpoint/weight_reader.h"
#include "cpp/model/features.h"
#include "cpp/model/spec/spec.h"
#include "cpp/model/weights.h"
#include "cpp/ops/ops.h"

namespace forerun {

class JsonObject;

enum class DraftHeadKind {
  kEagle,   // fc [embedding, feature] -> layers, the first without a norm -> the target's head
  kEagle3,  // layers whose first attends to [norm embedding, norm feature]; feature = fc of states
  kMtp,     // fusion [norm embedding, norm feature] -> layers -> norm -> the target's head
};

// What a checkpoint leaves open, or gets wrong.
struct DraftHeadOverrides {
  std::optional<std::vector<int>> aux_hidden_state_layer_ids;
  std::optional<bool> norm_before_residual;
  std::optional<bool> norm_output;
  std::optional<bool> norm_target_state;
};

struct DraftHeadSpec {
  DraftHeadKind kind = DraftHeadKind::kEagle;
  ModelSpec layers;           // vocab_size is that of the head's logits
  FeatureSpec features;       // of the target
  int feature_size = 0;       // of all features of a position
  int num_feature_norms = 0;  // over equal parts of the features, before they are fused
  bool fuses_features = false;
  bool hidden_first = false;       // the fusion reads [feature, embedding]
  bool masks_first_token = false;  // the first row's embedding is taken as zero
  bool norm_before_residual = false;
  bool feeds_back_normed = false;  // the next draft row's feature is what the output head reads
  float embedding_scale = 1.0f;
  float logit_scale = 1.0f;
  float soft_cap = 0.0f;
};

struct DraftHeadWeights {
  std::unique_ptr<PackedMatrix> embedding;  // null: the target's
  std::unique_ptr<PackedMatrix> fusion;     // null: features are taken as they are
  FloatVector fusion_bias;
  std::vector<FloatVector> feature_norms;
  FloatVector embedding_norm, hidden_norm;  // of the fusion's or the first layer's inputs
  std::vector<LayerWeights> layers;
  FloatVector final_norm;                 // empty: none
  std::unique_ptr<PackedMatrix> lm_head;  // null: the target's
  std::vector<TokenId> target_ids;        // of the head's logits; empty: their own number
};

// Rows of the target's output matrix.
std::unique_ptr<PackedMatrix> LoadTargetRows(const ModelSpec& target, const std::string& directory,
                                             std::span<const TokenId> rows,
                                             const MatrixFormat& format, Ops& ops);

class DraftHeadReader {
 public:
  // Understands the checkpoint in `directory`; for kMtp the target's own, where `directory` is
  // empty. Throws CheckpointError or InvalidArgument.
  DraftHeadReader(DraftHeadKind kind, const std::string& directory,
                  const DraftHeadOverrides& overrides, const ModelSpec& target,
                  const std::string& target_directory);
  ~DraftHeadReader();

  const DraftHeadSpec& spec() const { return spec_; }
  DraftHeadWeights Load(const ModelFormats& formats, const DraftVocabulary& vocabulary, Ops& ops);

 private:
  // Names of the tensors, which differ between formats.
  struct Names {
    std::string fusion, embedding_norm, hidden_norm, final_norm, layers;
  };

  void ReadEagle(const JsonObject& config);
  void ReadEagle3(const JsonObject& config, const DraftHeadOverrides& overrides);
  void ReadMtp(const JsonObject& config, const DraftHeadOverrides& overrides);
  void ReadAuxLayers(const JsonObject& config, const DraftHeadOverrides& overrides, int num_states);
  // Sizes of the layers, from the first one's tensors and the config.
  void ReadLayers(const JsonObject& config, int num_inputs);
  void ReadVocabulary(const JsonObject& config);
  LayerTensors LayerAt(int index) const;
  void LoadVocabulary(const ModelFormats& formats, const DraftVocabulary& vocabulary, Ops& ops,
                      DraftHeadWeights& weights);
  std::vector<TokenId> TakeTargetIds();

  const ModelSpec target_;
  const std::string target_directory_;
  Checkpoint checkpoint_;
  WeightReader reader_;
  Names names_;
  DraftHeadSpec spec_;
};

// DIR/config.json, flattened (detect.h).
JsonObject ReadDraftConfig(const std::string& directory);

// Throws CheckpointError unless the drafter's vocabulary, where its config gives one, is the
// target's.
void CheckDraftVocabulary(const JsonObject& config, const ModelSpec& target);

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_FORMATS_DRAFT_HEAD_H_
