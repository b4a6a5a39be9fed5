#include "cpp/draft/neural/mlp_network.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cpp/draft/formats/draft_head.h"
#include "cpp/model/checkpoint/json.h"
#include "cpp/model/checkpoint/weight_reader.h"
#include "cpp/model/logits.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

constexpr float kMlpEps = 1e-6f;
constexpr int kMaxHeads = 64;

// Heads that are tied have their tensors stored once: those of depth 0, or of depth 1 where depth 0
// is of another shape.
std::string TiedName(const WeightReader& reader, const char* kind, int depth) {
  const auto name = [&](int i) { return std::string(kind) + "." + std::to_string(i); };
  if (depth == 0 || reader.Has(name(depth) + ".weight")) return name(depth);
  return name(std::string(kind) == "proj" ? 1 : 0);
}

}  // namespace

MlpNetwork::MlpNetwork(const std::string& directory, const Transformer& target,
                       const ModelFormats& formats, const DraftVocabulary& vocabulary, Ops& ops,
                       int max_rows)
    : target_(target), ops_(ops) {
  const JsonObject config = ReadDraftConfig(directory);
  CheckDraftVocabulary(config, target.spec());
  Checkpoint checkpoint(directory);
  WeightReader reader(checkpoint, CanonicalDraftName);
  const int num_heads = config.Int("n_predict", 3, 1, kMaxHeads);
  inner_size_ = static_cast<int>(reader.ShapeOf("head.0.weight", 2)[1]);
  const int hidden = target.spec().hidden_size, vocab = target.vocab_size();

  const std::vector<TokenId> kept = vocabulary.Choose(vocab, target_ids_);
  const auto matrix = [&](const std::string& name, int outputs, int inputs,
                          const MatrixFormat& format) {
    std::unique_ptr<PackedMatrix>& matrix_of_name = matrices_[name];
    if (matrix_of_name == nullptr) {
      matrix_of_name = reader.TakeMatrix({{name, outputs}}, inputs, format, ops);
    }
    return matrix_of_name.get();
  };
  const auto output = [&](const std::string& name) {
    std::unique_ptr<PackedMatrix>& matrix_of_name = matrices_[name];
    if (matrix_of_name == nullptr) {
      matrix_of_name = TakeOutput(reader, name, {vocab, inner_size_}, kept, formats.head, ops);
    }
    return matrix_of_name.get();
  };
  for (int i = 0; i < num_heads; ++i) {
    const std::string norm = TiedName(reader, "ln", i);
    heads_.push_back({matrix(TiedName(reader, "emb", i), vocab, inner_size_, formats.embedding),
                      matrix(TiedName(reader, "proj", i), inner_size_,
                             i == 0 ? hidden : inner_size_, formats.linear),
                      output(TiedName(reader, "head", i)),
                      reader.TakeVector(norm + ".weight", inner_size_, ops),
                      reader.TakeVector(norm + ".bias", inner_size_, ops)});
  }
  reader.CheckLeftovers(
      [](const std::string&) { return false; },
      "only tensors of " + std::to_string(num_heads) + " heads, as n_predict says");
  const double state_weight = std::pow(0.5, 0.5 / num_heads);
  embedding_scale_ = static_cast<float>(
      std::sqrt((1.0 - state_weight * state_weight) * inner_size_ / 2.0) / state_weight);
  if (config.Bool("scale_input", false)) {
    input_scale_ = {ops.memory(),
                    std::vector<float>(hidden, static_cast<float>(1.0 / std::sqrt(2.0)))};
  }
  outputs_ = MakeScratch(ops, max_rows, inner_size_);
  next_outputs_ = MakeScratch(ops, max_rows, inner_size_);
  input_ = MakeScratch(ops, max_rows, std::max(hidden, inner_size_));
  embedded_ = MakeScratch(ops, max_rows, inner_size_);
  logits_ = MakeScratch(ops, max_rows, heads_.front().output->num_outputs());
  ops.Reserve({max_rows, std::max(hidden, inner_size_)});
}

ConstRows MlpNetwork::Forward(const DraftBatch& batch) {
  const int num_rows = static_cast<int>(batch.tokens.size());
  const Head& head = heads_.at(batch.depth);
  const bool is_first = batch.depth == 0;
  const Rows input = RowsOf(input_, num_rows, head.projection->num_inputs());
  const ForwardRows& rows = ops_.Begin(
      {.tokens = batch.tokens, .sources = batch.sources, .device_tokens = batch.device_tokens});
  ops_.GatherRows(
      is_first ? target_.features()->rows() : RowsOf(outputs_, num_outputs_, inner_size_), rows,
      RowIndices::kSources, input);
  if (is_first && !input_scale_.empty()) {
    ops_.RmsNorm(input, input_scale_.data(), input.cols, kMlpEps, input);
  }
  const Rows state = RowsOf(next_outputs_, num_rows, inner_size_);
  const Rows embedded = RowsOf(embedded_, num_rows, inner_size_);
  ops_.MatMul(input, *head.projection, nullptr, /*accumulate=*/false, state);
  ops_.Embed(rows, *head.embedding, embedding_scale_, embedded);
  ops_.Add(embedded, state);
  ops_.RmsNorm(state, head.norm.data(), inner_size_, kMlpEps, state);
  ops_.Activate(state, head.bias.data(), Activation::kGelu, state);
  std::swap(outputs_, next_outputs_);
  num_outputs_ = num_rows;

  return ComputeLogits(ops_, state, *head.output, {}, logits_);
}

}  // namespace forerun
