#include "cpp/draft/neural/medusa_network.h"

#include <numeric>
#include <utility>

#include "cpp/draft/formats/draft_head.h"
#include "cpp/model/checkpoint/json.h"
#include "cpp/model/logits.h"
#include "cpp/util/check.h"

namespace forerun {

MedusaNetwork::MedusaNetwork(const Directories& directories, const Transformer& target,
                             const ModelFormats& formats, const DraftVocabulary& vocabulary,
                             Ops& ops, int max_rows)
    : target_(target), formats_(formats), ops_(ops), hidden_size_(target.spec().hidden_size) {
  const JsonObject config = ReadDraftConfig(directories.drafter);
  Checkpoint checkpoint(directories.drafter);
  WeightReader reader(checkpoint, CanonicalDraftName);
  is_original_ = reader.Has("0.0.linear.weight");
  if (!reader.Has(BlockName(0, 0) + ".weight")) {
    throw CheckpointError("tensor '" + BlockName(0, 0) + ".weight'", "nothing", "a Medusa head");
  }
  // All blocks have one or none has. The original's configs are known to be wrong.
  const bool has_biases = reader.Has(BlockName(0, 0) + ".bias") ||
                          (!is_original_ && config.Bool("medusa_fc_bias", false));
  for (int i = 0; reader.Has(BlockName(i, 0) + ".weight"); ++i) ReadBlocks(i, has_biases, reader);
  ReadVocabulary(config, reader);
  ReadOutputs(directories.target, vocabulary.Choose(vocab_size_, target_ids_), reader);
  reader.CheckLeftovers([](const std::string&) { return false; }, "only tensors of Medusa heads");
  logit_scale_ = static_cast<float>(config.PositiveNumber("logit_scale", 1.0));
  outputs_ = MakeScratch(ops, max_rows, hidden_size_);
  next_outputs_ = MakeScratch(ops, max_rows, hidden_size_);
  state_ = MakeScratch(ops, max_rows, hidden_size_);
  block_ = MakeScratch(ops, max_rows, hidden_size_);
  logits_ = MakeScratch(ops, max_rows, vocab_size_);
  ops.Reserve({max_rows, hidden_size_});
}

std::string MedusaNetwork::BlockName(int head, int block) const {
  const std::string number = std::to_string(head);
  return is_original_ ? number + "." + std::to_string(block) + ".linear"
                      : "blocks." + number + ".layers." + std::to_string(block);
}

std::string MedusaNetwork::OutputName(int head) const {
  const std::string number = std::to_string(head);
  return is_original_ ? number + "." + std::to_string(heads_[head].blocks.size())
                      : "lm_heads." + number;
}

void MedusaNetwork::ReadBlocks(int head, bool has_biases, WeightReader& reader) {
  std::vector<Block>& blocks = heads_.emplace_back().blocks;
  for (int i = 0; reader.Has(BlockName(head, i) + ".weight"); ++i) {
    const std::string name = BlockName(head, i);
    Block& read = blocks.emplace_back();
    read.weight = reader.TakeMatrix({{name, hidden_size_}}, hidden_size_, formats_.linear, ops_);
    if (has_biases) read.bias = reader.TakeBias({{name, hidden_size_}}, ops_);
  }
}

void MedusaNetwork::ReadVocabulary(const JsonObject& config, WeightReader& reader) {
  const bool has_map = reader.Has("token_map");
  if (reader.Has("lm_head.weight")) {
    vocab_size_ = static_cast<int>(reader.ShapeOf("lm_head.weight", 2)[0]);
  } else if (reader.Has(OutputName(0) + ".weight")) {
    vocab_size_ = static_cast<int>(reader.ShapeOf(OutputName(0) + ".weight", 2)[0]);
  } else {
    vocab_size_ =
        has_map ? static_cast<int>(reader.ShapeOf("token_map", 1)[0]) : target_.vocab_size();
  }
  if (vocab_size_ > target_.vocab_size()) {
    throw CheckpointError("Medusa heads", std::to_string(vocab_size_) + " tokens",
                          "at most the target's " + std::to_string(target_.vocab_size()));
  }
  if (has_map) {
    for (std::int64_t id :
         reader.TakeIntegers("token_map", vocab_size_, 0, target_.vocab_size() - 1)) {
      target_ids_.push_back(static_cast<TokenId>(id));
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

void MedusaNetwork::ReadOutputs(const std::string& target_directory, std::span<const TokenId> kept,
                                WeightReader& reader) {
  const auto take = [&](const std::string& name) {
    return reader.Has(name + ".weight")
               ? TakeOutput(reader, name, {vocab_size_, hidden_size_}, kept, formats_.head, ops_)
               : nullptr;
  };
  for (std::size_t i = 0; i < heads_.size(); ++i) heads_[i].output = take(OutputName(i));
  shared_output_ = take("lm_head");
  const bool has_output = shared_output_ != nullptr || heads_.front().output != nullptr;
  if (!has_output && !target_ids_.empty()) {
    shared_output_ =
        LoadTargetRows(target_.spec(), target_directory, target_ids_, formats_.head, ops_);
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
  // No head reads a token: those that a device has are not asked for.
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
