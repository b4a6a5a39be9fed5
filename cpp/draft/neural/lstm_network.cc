#include "cpp/draft/neural/lstm_network.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cpp/draft/formats/draft_head.h"
#include "cpp/model/checkpoint/json.h"
#include "cpp/model/checkpoint/weight_reader.h"
#include "cpp/model/logits.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

constexpr float kLstmEps = 1e-6f;
constexpr int kMaxDepth = 64;
constexpr std::array<const char*, 4> kGateNames = {"forget", "input", "output", "cell"};

}  // namespace

bool LstmNetwork::IsIn(const std::string& directory) {
  Checkpoint checkpoint(directory);
  return WeightReader(checkpoint, CanonicalDraftName).Has("forget_emb.0.weight");
}

LstmNetwork::LstmNetwork(const std::string& directory, const Transformer& target,
                         const ModelFormats& formats, const DraftVocabulary& vocabulary, Ops& ops,
                         int max_rows)
    : target_(target), ops_(ops) {
  const JsonObject config = ReadDraftConfig(directory);
  CheckDraftVocabulary(config, target.spec());
  Checkpoint checkpoint(directory);
  WeightReader reader(checkpoint, CanonicalDraftName);
  const int hidden = target.spec().hidden_size, vocab = target.vocab_size();
  max_depth_ = config.Int("n_predict", 3, 1, kMaxDepth);
  size_ = static_cast<int>(reader.ShapeOf("forget_proj.0.weight", 2)[0]);
  for (int gate = 0; gate < kNumGates; ++gate) {
    const std::string name = std::string(kGateNames[gate]) + "_emb.0";
    // The copies of a tied embedding may be there all the same.
    if (gate == kForget || (reader.Has(name + ".weight") && !config.Bool("tie_lstm_embs", false))) {
      embeddings_[gate] = reader.TakeMatrix({{name, vocab}}, size_, formats.embedding, ops);
    } else {
      reader.Ignore(name + ".weight");
    }
  }
  for (int i = 0; i < 2; ++i) {
    const auto part = [&](Gate gate) {
      return WeightReader::Part{std::string(kGateNames[gate]) + "_proj." + std::to_string(i),
                                size_};
    };
    projections_[i] = reader.TakeMatrix({part(kForget), part(kInput), part(kOutput), part(kCell)},
                                        i == 0 ? hidden : size_, formats.linear, ops);
  }
  cell_norm_ = reader.TakeVector("cell_ln.0.weight", size_, ops);
  cell_bias_ = reader.TakeVector("cell_ln.0.bias", size_, ops);
  state_norm_ = reader.TakeVector("state_ln.0.weight", size_, ops);
  state_bias_ = reader.TakeVector("state_ln.0.bias", size_, ops);
  const std::vector<TokenId> kept = vocabulary.Choose(vocab, target_ids_);
  head_ = TakeOutput(reader, "head.0", {vocab, size_}, kept, formats.head, ops);
  reader.CheckLeftovers([](const std::string&) { return false; },
                        "only tensors of an LSTM speculator with tied weights");
  const double state_weight = std::pow(0.5, 0.5 / max_depth_);
  embedding_scale_ = static_cast<float>(
      std::sqrt((1.0 - state_weight * state_weight) * size_ / 2.0) / state_weight);
  if (config.Bool("scale_input", false)) {
    input_scale_ = {ops.memory(),
                    std::vector<float>(hidden, static_cast<float>(1.0 / std::sqrt(2.0)))};
  }
  outputs_ = MakeScratch(ops, max_rows, 2 * size_);
  next_outputs_ = MakeScratch(ops, max_rows, 2 * size_);
  input_ = MakeScratch(ops, max_rows, std::max(hidden, 2 * size_));
  gates_ = MakeScratch(ops, max_rows, kNumGates * size_);
  pair_ = MakeScratch(ops, max_rows, 2 * size_);
  logits_ = MakeScratch(ops, max_rows, head_->num_outputs());
  ops.Reserve({max_rows, std::max(hidden, size_)});
}

ConstRows LstmNetwork::Forward(const DraftBatch& batch) {
  const int num_rows = static_cast<int>(batch.tokens.size());
  const bool is_first = batch.depth == 0;
  const int num_inputs = is_first ? target_.spec().hidden_size : size_;
  const Rows gates = RowsOf(gates_, num_rows, kNumGates * size_);
  const Rows next = RowsOf(next_outputs_, num_rows, 2 * size_);
  const Rows state = next.Columns(0, size_), cell = next.Columns(size_, size_);
  const Rows pair = RowsOf(pair_, num_rows, 2 * size_);
  const Rows left = pair.Columns(0, size_), right = pair.Columns(size_, size_);
  const ConstRows before = RowsOf(outputs_, num_outputs_, 2 * size_);
  const ForwardRows& rows = ops_.Begin(
      {.tokens = batch.tokens, .sources = batch.sources, .device_tokens = batch.device_tokens});

  const Rows input = RowsOf(input_, num_rows, num_inputs);
  ops_.GatherRows(is_first ? target_.features()->rows() : before.Columns(0, size_), rows,
                  RowIndices::kSources, input);
  if (is_first && !input_scale_.empty()) {
    ops_.RmsNorm(input, input_scale_.data(), num_inputs, kLstmEps, input);
  }
  ops_.MatMul(input, *projections_[is_first ? 0 : 1], nullptr, /*accumulate=*/false, gates);
  for (int gate = 0; gate < kNumGates; ++gate) {
    const auto& own = embeddings_[gate];
    const PackedMatrix& table = own != nullptr ? *own : *embeddings_[kForget];
    ops_.Embed(rows, table, embedding_scale_, left);
    ops_.Add(left, gates.Columns(gate * size_, size_));
  }
  const auto gate = [&](Gate which) { return gates.Columns(which * size_, size_); };
  ops_.RmsNorm(gate(kCell), cell_norm_.data(), size_, kLstmEps, right);
  ops_.Activate(right, cell_bias_.data(), Activation::kGelu, right);
  ops_.Copy(gate(kInput), left);
  ops_.GatedActivation(pair, Activation::kSigmoid, cell);
  if (!is_first) {
    ops_.Copy(gate(kForget), left);
    ops_.GatherRows(before.Columns(size_, size_), rows, RowIndices::kSources, right);
    ops_.GatedActivation(pair, Activation::kSigmoid, state);
    ops_.Add(state, cell);
  }
  ops_.RmsNorm(cell, state_norm_.data(), size_, kLstmEps, right);
  ops_.Activate(right, state_bias_.data(), Activation::kGelu, right);
  ops_.Copy(gate(kOutput), left);
  ops_.GatedActivation(pair, Activation::kSigmoid, state);
  std::swap(outputs_, next_outputs_);
  num_outputs_ = num_rows;

  return ComputeLogits(ops_, state, *head_, {}, logits_);
}

}  // namespace forerun
