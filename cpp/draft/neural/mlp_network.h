// MLP speculators (Wertheimer et al., "Accelerating Production LLMs with Combined Token/Embedding
// Speculators"), in the format of IBM's accelerators.
//
// From the target's final hidden state and the newest token, head i makes the state and the
// candidates of the i-th next token:  s <- gelu(norm(proj_i s + ratio emb_i[token]) * weight_i +
// bias_i).
#ifndef FORERUN_CPP_DRAFT_NEURAL_MLP_NETWORK_H_
#define FORERUN_CPP_DRAFT_NEURAL_MLP_NETWORK_H_

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpp/draft/formats/draft_vocabulary.h"
#include "cpp/draft/neural/draft_network.h"
#include "cpp/model/transformer.h"

namespace forerun {

class MlpNetwork : public DraftNetwork {
 public:
  // Reads the drafter in `directory`. The target, which keeps its final hidden states, and the Ops
  // must outlive it. Throws CheckpointError.
  MlpNetwork(const std::string& directory, const Transformer& target, const ModelFormats& formats,
             const DraftVocabulary& vocabulary, Ops& ops, int max_rows);

  ConstRows Forward(const DraftBatch& batch) override;
  std::span<const TokenId> target_ids() const override { return target_ids_; }
  bool has_kv() const override { return false; }
  int max_depth() const override { return static_cast<int>(heads_.size()); }

 private:
  // Of one depth. Matrices may be shared with other depths.
  struct Head {
    const PackedMatrix *embedding, *projection, *output;
    FloatVector norm, bias;
  };

  const Transformer& target_;
  Ops& ops_;
  std::map<std::string, std::unique_ptr<PackedMatrix>> matrices_;
  std::vector<Head> heads_;
  std::vector<TokenId> target_ids_;
  int inner_size_ = 0;
  float embedding_scale_ = 0.0f;
  FloatVector input_scale_;  // empty: the input is not scaled
  AlignedBuffer outputs_, next_outputs_, input_, embedded_, logits_;
  int num_outputs_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_MLP_NETWORK_H_
