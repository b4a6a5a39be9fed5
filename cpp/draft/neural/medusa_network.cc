#include "cpp/draft/neural/medusa_network.h"

#include <numeric>
#include <utility>

#include "cpp/draft/formats/draft_head.h"
#include "cpp/model/checkpoint/json.h"
#include "cpp/model/logits.h"
#include "cpp/util/check.h"

namespace forerun {

MedusaNetwork::MedusaNetwork(const std::string& directory, const Transformer& target,
                             const std::string& target_directory, const ModelFormats& formats,
                             Ops& ops, int max_rows)
    : target_(target), formats_(formats), ops_(ops), hidden_size_(target.spec().hidden_size) {
  const JsonObject config = ReadDraftConfig(directory);
  Checkpoint checkpoint(directory);
  WeightReader reader(checkpoint, CanonicalDraftName);
  const bool is_original = reader.Has("0.0.linear.weight");
  const auto first = [&](int head) {
    return is_original ? std::to_string(head) + ".0.linear.weight"
                       : "blocks." + std::to_string(head) + ".layers.0.weight";
  };
  if (!reader.Has(first(0))) {
    throw CheckpointError("tensor '" + first(0) + "'", "nothing", "a Medusa head");
  }
  // All blocks have one or none has. The original's configs are known to be wrong.
  const std::string first_block = first(0).substr(0, first(0).rfind('.'));
  const bool has_biases =
      reader.Has(first_block + ".bias") || (!is_original && config.Bool("medusa_fc_bias", false));
  for (int i = 0; reader.Has(first(i)); ++i) ReadHead(i, is_original, has_biases, reader);
  ReadVocabulary(config, target_directory, reader);
  reader.CheckLeftovers([](const std::string&) { return false; }, "only tensors of Medusa heads");
  logit_scale_ = static_cast<float>(config.PositiveNumber("logit_scale", 1.0));
  outputs_ = MakeScratch(ops, max_rows, hidden_size_);
  next_outputs_ = MakeScratch(ops, max_rows, hidden_size_);
  state_ = MakeScratch(ops, max_rows, hidden_size_);
  block_ = MakeScratch(ops, max_rows, hidden_size_);
  logits_ = MakeScratch(ops, max_rows, vocab_size_);
  ops.Reserve({max_rows, hidden_size_});
}

void MedusaNetwork::ReadHead(int index, bool is_original, bool has_biases, WeightReader& reader) {
  const std::string number = std::to_string(index);
  const auto block = [&](int layer) {
    return is_original ? number + "." + std::to_string(layer) + ".linear"
                       : "blocks." + number + ".layers." + std::to_string(layer);
  };
  Head head;
  int num_blocks = 0;
  for (; reader.Has(block(num_blocks) + ".weight"); ++num_blocks) {
    const std::string name = block(num_blocks);
    Block& read = head.blocks.emplace_back();
    read.weight = reader.TakeMatrix({{name, hidden_size_}}, hidden_size_, formats_.linear, ops_);
    if (has_biases) read.bias = reader.TakeBias({{name, hidden_size_}}, ops_);
  }
  const std::string output =
      is_original ? number + "." + std::to_string(num_blocks) : "lm_heads." + number;
  if (reader.Has(output + ".weight")) {
    const int rows = static_cast<int>(reader.ShapeOf(output + ".weight", 2)[0]);
    if (index == 0) vocab_size_ = rows;
    head.output = reader.TakeMatrix({{output, vocab_size_}}, hidden_size_, formats_.head, ops_);
  }
  heads_.push_back(std::move(head));
}

void MedusaNetwork::ReadVocabulary(const JsonObject& config, const std::string& target_directory,
                                   WeightReader& reader) {
  if (reader.Has("lm_head.weight")) {
    vocab_size_ = static_cast<int>(reader.ShapeOf("lm_head.weight", 2)[0]);
    shared_output_ =
        reader.TakeMatrix({{"lm_head", vocab_size_}}, hidden_size_, formats_.head, ops_);
  }
  const bool has_output = vocab_size_ > 0;
  if (!has_output) {
    const bool is_truncated = reader.Has("token_map");
    vocab_size_ =
        is_truncated ? static_cast<int>(reader.ShapeOf("token_map", 1)[0]) : target_.vocab_size();
  }
  if (vocab_size_ > target_.vocab_size()) {
    throw CheckpointError("Medusa heads", std::to_string(vocab_size_) + " tokens",
                          "at most the target's " + std::to_string(target_.vocab_size()));
  }
  if (reader.Has("token_map")) {
    for (std::int64_t id :
         reader.TakeIntegers("token_map", vocab_size_, 0, target_.vocab_size() - 1)) {
      target_ids_.push_back(static_cast<TokenId>(id));
    }
    if (!has_output) {
      shared_output_ =
          LoadTargetRows(target_.spec(), target_directory, target_ids_, formats_.head, ops_);
    }
  } else if (config.Has("truncated_vocab_size") &&
             config.Int("truncated_vocab_size", 0) < config.Int("vocab_size", 0)) {
    throw CheckpointError("tensor 'token_map'", "nothing",
                          "the target ids of a truncated vocabulary");
  } else if (vocab_size_ < target_.vocab_size()) {
    // Targets gain tokens that a head never saw.
    target_ids_.resize(vocab_size_);
    std::iota(target_ids_.begin(), target_ids_.end(), 0);
  }
}

ConstRows MedusaNetwork::Forward(const DraftBatch& batch) {
  const int num_rows = static_cast<int>(batch.tokens.size());
  const Head& head = heads_.at(batch.depth);
  // All heads read the same state: it is handed on as it is.
  const Rows input = RowsOf(next_outputs_, num_rows, hidden_size_);
  const Rows state = RowsOf(state_, num_rows, hidden_size_);
  const ConstRows source = batch.depth == 0
                               ? target_.features()->rows()
                               : ConstRows(RowsOf(outputs_, num_outputs_, hidden_size_));
  const ForwardRows& rows = ops_.Begin({.tokens = batch.tokens, .sources = batch.sources});
  ops_.GatherRows(source, rows, RowIndices::kSources, input);
  ops_.Copy(input, state);
  std::swap(outputs_, next_outputs_);
  num_outputs_ = num_rows;

  const Rows block = RowsOf(block_, num_rows, hidden_size_);
  for (const Block& residual : head.blocks) {
    ops_.MatMul(state, *residual.weight, nullptr, /*accumulate=*/false, block);
    ops_.Activate(block, residual.bias.data(), Activation::kSilu, block);
    ops_.Add(block, state);
  }
  const PackedMatrix* output = head.output.get();
  if (output == nullptr) output = shared_output_.get();
  if (output == nullptr) output = &target_.weights().head();
  return ComputeLogits(ops_, state, *output, {.scale = logit_scale_}, logits_);
}

}  // namespace forerun
