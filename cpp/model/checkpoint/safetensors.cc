#include "cpp/model/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <utility>

#include "cpp/model/checkpoint/json.h"
#include "cpp/model/checkpoint/weight_files.h"

namespace forerun {
namespace {

using nlohmann::json;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

std::optional<DType> ParseDType(const std::string& name) {
  if (name == "F32") return DType::kFloat32;
  if (name == "BF16") return DType::kBFloat16;
  if (name == "F16") return DType::kFloat16;
  if (name == "I64") return DType::kInt64;
  if (name == "I32") return DType::kInt32;
  if (name == "I8") return DType::kInt8;
  if (name == "U8") return DType::kUInt8;
  if (name == "BOOL") return DType::kBool;
  return std::nullopt;
}

std::string Quote(const std::string& name) { return std::string("'") + Shorten(name) + "'"; }

std::uint64_t ReadHeaderLength(std::span<const std::byte> file, const std::string& label) {
  if (file.size() < kLengthBytes) {
    throw CheckpointError(label, std::to_string(file.size()) + " bytes",
                          "a safetensors file, which has at least 8");
  }
  std::uint64_t length = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) {
    length = length << 8 | std::to_integer<std::uint64_t>(file[i]);
  }
  const std::uint64_t limit = std::min<std::uint64_t>(file.size() - kLengthBytes, kMaxHeaderBytes);
  if (length > limit) {
    throw CheckpointError(label + ": header length", std::to_string(length) + " bytes",
                          "at most " + std::to_string(limit) +
                              " in this file; it is truncated or not a safetensors file");
  }
  return length;
}

// Reads the fields of one tensor's entry in a header.
class EntryReader {
 public:
  EntryReader(const std::string& label, const std::string& name, const json& entry)
      : field_(label + ": tensor " + Quote(name)), entry_(entry) {}

  // `data_begin` is where the file's data starts.
  SafetensorsEntry Read(std::uint64_t data_begin, std::uint64_t file_bytes) const {
    if (!entry_.is_object()) Refuse("", entry_, "an object");
    SafetensorsEntry result;
    const json& dtype = Field("dtype");
    const auto parsed = dtype.is_string() ? ParseDType(dtype.get<std::string>()) : std::nullopt;
    if (!parsed) Refuse(": dtype", dtype, "F32, BF16, F16, I64, I32, I8, U8 or BOOL");
    result.dtype = *parsed;

    const std::uint64_t num_bytes = ReadShape(result);
    const json& offsets = Field("data_offsets");
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      Refuse(": data_offsets", offsets, "two byte offsets");
    }
    const auto begin = offsets[0].get<std::uint64_t>();
    const auto end = offsets[1].get<std::uint64_t>();
    const std::uint64_t data_bytes = file_bytes - data_begin;
    if (begin > end) Refuse(": data_offsets", offsets, "begin <= end");
    if (end > data_bytes) {
      Refuse(": data_offsets", offsets,
             "an end of at most " + std::to_string(data_bytes) + "; the file is truncated");
    }
    if (end - begin != num_bytes) {
      Refuse(": data_offsets", offsets,
             std::to_string(num_bytes) + " bytes, as shape and dtype say");
    }
    result.begin = data_begin + begin;
    result.end = data_begin + end;
    return result;
  }

 private:
  // Fills the shape and returns the bytes it needs.
  std::uint64_t ReadShape(SafetensorsEntry& result) const {
    const json& shape = Field("shape");
    if (!shape.is_array()) Refuse(": shape", shape, "a list of extents");
    // Extents whose product fits a signed 63-bit count of bytes, also beside a zero.
    constexpr std::uint64_t kLimit = std::numeric_limits<std::int64_t>::max();
    std::uint64_t num_bytes = SizeOf(result.dtype);
    bool is_empty = false;
    for (const json& extent : shape) {
      if (!extent.is_number_unsigned()) Refuse(": shape", shape, "a list of extents");
      const auto value = extent.get<std::uint64_t>();
      if (value == 0) {
        is_empty = true;
      } else if (num_bytes > kLimit / value) {
        Refuse(": shape", shape, "a product that fits 63 bits");
      } else {
        num_bytes *= value;
      }
      result.shape.push_back(static_cast<std::int64_t>(value));
    }
    return is_empty ? 0 : num_bytes;
  }

  const json& Field(const char* key) const {
    const auto found = entry_.find(key);
    if (found == entry_.end()) Refuse(std::string(": ") + key, entry_, "a value");
    return *found;
  }

  [[noreturn]] void Refuse(const std::string& part, const json& value,
                           const std::string& expected) const {
    throw CheckpointError(field_ + part, Shorten(value.dump()), expected);
  }

  std::string field_;
  const json& entry_;
};

void CheckCoverage(const SafetensorsIndex& index, std::uint64_t begin, std::uint64_t end,
                   const std::string& label) {
  std::vector<std::pair<const SafetensorsEntry*, const std::string*>> sorted;
  for (const auto& [name, entry] : index) sorted.emplace_back(&entry, &name);
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
  });
  const std::uint64_t data_begin = begin;
  for (const auto& [entry, name] : sorted) {
    if (entry->begin != begin) {
      throw CheckpointError(label + ": tensor " + Quote(*name),
                            "data that begins at " + std::to_string(entry->begin - data_begin),
                            std::to_string(begin - data_begin) +
                                ", where the tensor before it ends: no overlaps, no holes");
    }
    begin = entry->end;
  }
  if (begin != end) {
    throw CheckpointError(label, std::to_string(end - begin) + " bytes after the last tensor",
                          "none");
  }
}

// From here on, the tensors that the metadata names have the shapes of their weights.
void ReadBlockTypes(const json& metadata, const std::string& label, SafetensorsIndex& index) {
  const std::string prefix = kBlocksKey;
  for (const auto& [key, value] : metadata.items()) {
    if (!key.starts_with(prefix)) continue;
    const std::string field = label + ": __metadata__: " + Quote(key);
    const auto refuse = [&](const std::string& given, const std::string& expected) {
      throw CheckpointError(field, given, expected);
    };
    const BlockType* type = value.is_string() ? FindBlockType(value.get<std::string>()) : nullptr;
    if (type == nullptr) refuse(Shorten(value.dump()), "a type of blocks, such as Q4_0");
    const auto found = index.find(key.substr(prefix.size()));
    if (found == index.end()) refuse(type->name, "the name of a tensor in this file");
    SafetensorsEntry& entry = found->second;
    // Rows of a tensor without any have no limit but this.
    constexpr std::int64_t kMaxRowBytes = std::numeric_limits<std::int32_t>::max();
    if (entry.dtype != DType::kUInt8 || entry.shape.size() != 2 || entry.shape[1] > kMaxRowBytes ||
        entry.shape[1] % type->num_bytes != 0) {
      refuse(type->name, "this for a U8 tensor with rows in multiples of " +
                             std::to_string(type->num_bytes) + " bytes");
    }
    entry.blocks = type;
    entry.shape[1] = entry.shape[1] / type->num_bytes * type->num_weights;
  }
}

}  // namespace

SafetensorsIndex ParseSafetensors(std::span<const std::byte> file, const std::string& label) {
  const std::uint64_t length = ReadHeaderLength(file, label);
  const json header = ParseJsonObject(file.subspan(kLengthBytes, length), label + ": header");
  SafetensorsIndex index;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    index[name] = EntryReader(label, name, entry).Read(kLengthBytes + length, file.size());
  }
  CheckCoverage(index, kLengthBytes + length, file.size(), label);
  if (const auto metadata = header.find("__metadata__"); metadata != header.end()) {
    ReadBlockTypes(*metadata, label, index);
  }
  return index;
}

class Checkpoint::MappedFile {
 public:
  MappedFile(const std::string& path, std::string label) : label_(std::move(label)) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
      throw CheckpointError(label_, "no such file at " + path, "a safetensors file");
    }
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status = {};
    if (file < 0 || fstat(file, &status) != 0) {
      const std::string reason = std::strerror(errno);
      if (file >= 0) close(file);
      throw CheckpointError(label_, reason + " at " + path, "a file that can be read");
    }
    num_bytes_ = static_cast<std::size_t>(status.st_size);
    void* data =
        num_bytes_ == 0 ? nullptr : mmap(nullptr, num_bytes_, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (data == MAP_FAILED) {
      throw CheckpointError(
          label_,
          std::string("a file that cannot be mapped (") + std::strerror(errno) + ") at " + path,
          "a file on a file system that supports mmap");
    }
    data_ = static_cast<std::byte*>(data);
  }
  ~MappedFile() {
    if (data_ != nullptr) munmap(data_, num_bytes_);
  }

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& label() const { return label_; }
  std::span<const std::byte> bytes() const { return {data_, num_bytes_}; }

  // Whole pages around the range: a neighbour's part is read again when it is wanted.
  void Drop(std::uint64_t begin, std::uint64_t end) const {
    const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    begin = begin / page * page;
    if (begin < end) madvise(data_ + begin, end - begin, MADV_DONTNEED);
  }

 private:
  std::string label_;
  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

Checkpoint::Checkpoint(const std::string& directory) : directory_(directory) {
  const WeightFiles files = FindWeightFiles(directory);
  if (files.are_pickled || files.names.empty()) {
    const std::string found = files.names.empty() ? "" : ", which has " + files.names.front();
    throw CheckpointError("model", "'" + directory + "'" + found,
                          "a directory with model.safetensors or model.safetensors.index.json");
  }
  for (const std::string& name : files.names) AddFile(name, files);
  for (const auto& [name, file] : files.file_of_tensor) {
    if (!Contains(name)) {
      throw CheckpointError(files.index_name + ": tensor " + Quote(name),
                            "'" + file + "', which lacks it", "the file that holds it");
    }
  }
  for (const auto& [name, tensor] : tensors_) names_.push_back(name);
}

Checkpoint::~Checkpoint() = default;

const Checkpoint::MappedFile& Checkpoint::Map(const std::string& file_name) {
  files_.push_back(std::make_unique<MappedFile>(
      (std::filesystem::path(directory_) / file_name).string(), file_name));
  return *files_.back();
}

void Checkpoint::AddFile(const std::string& file_name, const WeightFiles& files) {
  const MappedFile& file = Map(file_name);
  for (auto& [name, entry] : ParseSafetensors(file.bytes(), file.label())) {
    if (!files.index_name.empty()) {
      const auto listed = files.file_of_tensor.find(name);
      if (listed == files.file_of_tensor.end() || listed->second != file_name) continue;
    }
    if (!tensors_.emplace(name, Tensor{&file, std::move(entry), {}}).second) {
      throw CheckpointError(file_name + ": tensor " + Quote(name), "in another file too",
                            "every tensor in one file");
    }
  }
}

Checkpoint::Tensor& Checkpoint::Find(const std::string& name) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw CheckpointError("tensor '" + name + "'", "nothing", "a tensor in " + directory_);
  }
  return found->second;
}

TensorView Checkpoint::Get(const std::string& name) {
  Tensor& tensor = Find(name);
  const SafetensorsEntry& entry = tensor.entry;
  const std::byte* data = tensor.file->bytes().data() + entry.begin;
  if (reinterpret_cast<std::uintptr_t>(data) % SizeOf(entry.dtype) != 0) {
    if (tensor.aligned.num_bytes() == 0 && entry.end > entry.begin) {
      tensor.aligned = AlignedBuffer(HostMemory(), entry.end - entry.begin);
      std::memcpy(tensor.aligned.as<std::byte>(), data, entry.end - entry.begin);
    }
    data = tensor.aligned.as<std::byte>();
  }
  if (entry.blocks == nullptr) return {data, entry.dtype, entry.shape};
  const std::int64_t row_bytes =
      entry.shape[1] / entry.blocks->num_weights * entry.blocks->num_bytes;
  return {data, entry.dtype, {entry.shape[0], row_bytes}};
}

void Checkpoint::Drop(const std::string& name) {
  Tensor& tensor = Find(name);
  tensor.aligned = AlignedBuffer();
  tensor.file->Drop(tensor.entry.begin, tensor.entry.end);
}

}  // namespace forerun
