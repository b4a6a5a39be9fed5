#include "cpp/draft/formats/draft_vocabulary.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <utility>

#include "cpp/model/checkpoint/json.h"
#include "forerun/error.h"

namespace forerun {
namespace {

constexpr char kFile[] = "hot_tokens.json";
constexpr int kUnranked = -1;

std::vector<TokenId> ReadHotTokens(const std::string& path, int vocab_size) {
  const std::string field = std::string(kFile) + ": token_ids";
  const JsonObject object = JsonObject::FromFile(path, kFile);
  const nlohmann::json* const ids = object.Find("token_ids");
  if (ids == nullptr || !ids->is_array() || ids->empty()) {
    throw CheckpointError(field, ids == nullptr ? "nothing" : Shorten(ids->dump()),
                          "a list of token ids, the most frequent first");
  }
  std::vector<TokenId> tokens;
  std::vector<bool> is_listed(vocab_size);
  for (const nlohmann::json& id : *ids) {
    const bool is_token = id.is_number_integer() && id >= 0 && id < vocab_size;
    if (!is_token || is_listed[id.get<int>()]) {
      throw CheckpointError(
          field, Shorten(id.dump()),
          "each token of the target once at most, 0 to " + std::to_string(vocab_size - 1));
    }
    is_listed[id.get<int>()] = true;
    tokens.push_back(id.get<TokenId>());
  }
  return tokens;
}

}  // namespace

DraftVocabulary::DraftVocabulary(std::optional<int> size, const std::string& directory,
                                 const ModelSpec& target)
    : size_(size) {
  const std::string path = (std::filesystem::path(directory) / kFile).string();
  std::error_code error;
  has_file_ = std::filesystem::exists(path, error);
  if (!has_file_ && !size_) return;
  ranks_.assign(target.vocab_size, kUnranked);
  const auto add = [&](TokenId token) {
    if (token < target.vocab_size && ranks_[token] == kUnranked) ranks_[token] = num_hot_++;
  };
  for (TokenId token : target.eos_token_ids) add(token);
  if (has_file_) {
    for (TokenId token : ReadHotTokens(path, target.vocab_size)) add(token);
  }
  int num_ranked = num_hot_;
  for (int& rank : ranks_) {
    if (rank == kUnranked) rank = num_ranked++;
  }
}

std::vector<TokenId> DraftVocabulary::Choose(int num_rows, std::vector<TokenId>& target_ids) const {
  if (!has_file_ && !size_) return {};
  const auto rank = [&](TokenId row) {
    const TokenId token = target_ids.empty() ? row : target_ids[row];
    // Drafters may have rows for tokens that the target has not; they are never drafted.
    return token < std::ssize(ranks_) ? ranks_[token] : static_cast<int>(ranks_.size());
  };
  std::vector<TokenId> rows(num_rows);
  std::iota(rows.begin(), rows.end(), 0);
  if (size_) {
    if (*size_ > num_rows) {
      throw InvalidArgument(
          "draft_vocab_size", std::to_string(*size_),
          "at most " + std::to_string(num_rows) + ", as many tokens as the drafter has");
    }
    std::ranges::sort(rows, {}, [&](TokenId row) { return std::pair(rank(row), row); });
    rows.resize(*size_);
    std::ranges::sort(rows);
  } else {
    std::erase_if(rows, [&](TokenId row) { return rank(row) >= num_hot_; });
    if (rows.empty()) {
      throw CheckpointError(std::string(kFile) + ": token_ids", "no token that the drafter has",
                            "tokens that it has");
    }
  }
  if (std::ssize(rows) == num_rows) return {};
  std::vector<TokenId> kept;
  kept.reserve(rows.size());
  for (TokenId row : rows) kept.push_back(target_ids.empty() ? row : target_ids[row]);
  target_ids = std::move(kept);
  return rows;
}

std::unique_ptr<PackedMatrix> TakeOutput(WeightReader& reader, const std::string& layer,
                                         const Shape& shape, std::span<const TokenId> rows,
                                         const MatrixFormat& format, Ops& ops) {
  if (!rows.empty()) return reader.TakeRows(layer + ".weight", shape, rows, format, ops);
  return reader.TakeMatrix({{layer, shape[0]}}, static_cast<int>(shape[1]), format, ops);
}

}  // namespace forerun
