#include "cpp/ops/cpu/packed_cache.h"

#include <algorithm>
#include <utility>

namespace forerun {
namespace {

// num_inputs, the number of parts, and the format and the outputs of each.
ShapeWords WordsOf(std::span<const PartShape> shapes, int num_inputs) {
  ShapeWords words = {num_inputs, static_cast<std::int32_t>(shapes.size())};
  for (const PartShape& shape : shapes) {
    words.push_back(static_cast<std::int32_t>(shape.format));
    words.push_back(shape.num_outputs);
  }
  return words;
}

}  // namespace

PackedCache::PackedCache(std::string path, std::string key, const PackedFile* file,
                         ThreadTeam& team)
    : path_(std::move(path)),
      key_(std::move(key)),
      file_(file),
      team_(team),
      is_usable_(file != nullptr) {}

std::unique_ptr<CpuMatrix> PackedCache::Restore(std::span<const PartShape> shapes, int num_inputs) {
  if (!is_usable_) return nullptr;
  const ShapeWords words = WordsOf(shapes, num_inputs);
  const std::int64_t num_bytes = CpuMatrix::BytesOf(shapes, num_inputs);
  const auto words_left = std::span(file_->shapes()).subspan(next_word_);
  const auto data_left = file_->data().subspan(next_byte_);
  is_usable_ = words_left.size() >= words.size() &&
               std::ranges::equal(words, words_left.first(words.size())) &&
               std::ssize(data_left) >= num_bytes;
  if (!is_usable_) return nullptr;  // nor is the rest of it what this load asks for
  auto matrix = std::make_unique<CpuMatrix>(shapes, num_inputs, data_left.data());
  next_word_ += words.size();
  next_byte_ += num_bytes;
  Record(*matrix);
  return matrix;
}

void PackedCache::Add(const CpuMatrix& matrix) {
  ++num_packed_;
  Record(matrix);
}

void PackedCache::Record(const CpuMatrix& matrix) {
  std::vector<PartShape> shapes;
  for (const MatrixPart& part : matrix.parts()) shapes.push_back({part.format, part.num_outputs});
  const ShapeWords words = WordsOf(shapes, matrix.num_inputs());
  shapes_.insert(shapes_.end(), words.begin(), words.end());
  data_.push_back(matrix.data());
}

std::int64_t PackedCache::num_bytes() const {
  std::int64_t sum = 0;
  for (const auto& span : data_) sum += std::ssize(span);
  return sum;
}

std::string PackedCache::Finish() {
  if (is_restored()) return "";
  return WritePackedFile(path_, key_, shapes_, data_, team_);
}

}  // namespace forerun
