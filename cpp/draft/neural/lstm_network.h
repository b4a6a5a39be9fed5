// LSTM speculators in the format of ArcticInference: the recurrence of an MLP speculator with gates
// and a cell.
//
// With z = ratio * emb[token] and P_g = proj_g s + z for the gates forget, input, output and cell:
//   c <- c * sigmoid(P_forget) + gelu(norm(P_cell) * w + b) * sigmoid(P_input)
//   s <- gelu(norm(c) * w' + b') * sigmoid(P_output)
#ifndef FORERUN_CPP_DRAFT_NEURAL_LSTM_NETWORK_H_
#define FORERUN_CPP_DRAFT_NEURAL_LSTM_NETWORK_H_

#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpp/draft/formats/draft_vocabulary.h"
#include "cpp/draft/neural/draft_network.h"
#include "cpp/model/transformer.h"

namespace forerun {

class LstmNetwork : public DraftNetwork {
 public:
  // Whether the drafter in `directory` is one.
  static bool IsIn(const std::string& directory);

  // Reads the drafter in `directory`. The target, which keeps its final hidden states, and the Ops
  // must outlive it. Throws CheckpointError.
  LstmNetwork(const std::string& directory, const Transformer& target, const ModelFormats& formats,
              const DraftVocabulary& vocabulary, Ops& ops, int max_rows);

  ConstRows Forward(const DraftBatch& batch) override;
  std::span<const TokenId> target_ids() const override { return target_ids_; }
  bool has_kv() const override { return false; }
  int max_depth() const override { return max_depth_; }

 private:
  enum Gate { kForget, kInput, kOutput, kCell, kNumGates };

  const Transformer& target_;
  Ops& ops_;
  int max_depth_ = 0;
  int size_ = 0;  // of state, cell and gates
  float embedding_scale_ = 0.0f;
  FloatVector input_scale_;  // empty: the input is not scaled
  std::array<std::unique_ptr<PackedMatrix>, kNumGates> embeddings_;  // null: that of kForget
  std::array<std::unique_ptr<PackedMatrix>, 2> projections_;         // [gates * size, inputs]
  FloatVector cell_norm_, cell_bias_, state_norm_, state_bias_;
  std::unique_ptr<PackedMatrix> head_;
  std::vector<TokenId> target_ids_;
  AlignedBuffer outputs_, next_outputs_;  // state and cell, side by side
  AlignedBuffer input_, gates_, pair_, logits_;
  int num_outputs_ = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_LSTM_NETWORK_H_
