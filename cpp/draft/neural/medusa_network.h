// Medusa heads (Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple
// Decoding Heads"), in the original format and in vLLM's.
//
// Head i predicts the i-th next token from the target's final hidden state h alone:
//   h <- h + silu(W h + b), some times over, then the head's output matrix.
#ifndef FORERUN_CPP_DRAFT_NEURAL_MEDUSA_NETWORK_H_
#define FORERUN_CPP_DRAFT_NEURAL_MEDUSA_NETWORK_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpp/draft/formats/draft_vocabulary.h"
#include "cpp/draft/neural/draft_network.h"
#include "cpp/model/checkpoint/weight_reader.h"
#include "cpp/model/transformer.h"

namespace forerun {

class JsonObject;

class MedusaNetwork : public DraftNetwork {
 public:
  struct Directories {
    std::string drafter, target;
  };
  // Reads the drafter. The target, which keeps its final hidden states, and the Ops must outlive
  // it. Throws CheckpointError.
  MedusaNetwork(const Directories& directories, const Transformer& target,
                const ModelFormats& formats, const DraftVocabulary& vocabulary, Ops& ops,
                int max_rows);

  ConstRows Forward(const DraftBatch& batch) override;
  std::span<const TokenId> target_ids() const override { return target_ids_; }
  bool has_kv() const override { return false; }
  bool ignores_path() const override { return true; }
  int max_depth() const override { return static_cast<int>(heads_.size()); }

 private:
  struct Block {
    std::unique_ptr<PackedMatrix> weight;
    FloatVector bias;
  };
  struct Head {
    std::vector<Block> blocks;
    std::unique_ptr<PackedMatrix> output;  // null: shared_output_
  };

  // Of a head, which has an output matrix as well.
  void ReadBlocks(int head, bool has_biases, WeightReader& reader);
  // Of the linear layers, without ".weight".
  std::string BlockName(int head, int block) const;
  std::string OutputName(int head) const;
  // Sets the size of the outputs and the target's ids of their rows.
  void ReadVocabulary(const JsonObject& config, WeightReader& reader);
  void ReadOutputs(const std::string& target_directory, std::span<const TokenId> kept,
                   WeightReader& reader);

  const Transformer& target_;
  const ModelFormats formats_;
  Ops& ops_;
  const int hidden_size_;
  bool is_original_ = false;  // the format
  std::vector<Head> heads_;
  std::unique_ptr<PackedMatrix> shared_output_;  // null: the target's head
  int vocab_size_ = 0;                           // of the checkpoint's outputs
  float logit_scale_ = 1.0f;
  std::vector<TokenId> target_ids_;
  AlignedBuffer outputs_, next_outputs_, state_, block_, logits_;
  int num_outputs_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_MEDUSA_NETWORK_H_
