// A safetensors file or a shard index: any bytes give tensors inside the file, or a
// CheckpointError.
//
// The first byte chooses: the rest is a whole file; or a header, whose length is put before it and
// 64 bytes of data after it (else hardly any input gets past the length); or the index of shards.
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "cpp/model/checkpoint/safetensors.h"
#include "cpp/util/check.h"
#include "forerun/error.h"
#include "tests/fuzz/scratch_directory.h"

namespace forerun {
namespace {

constexpr std::size_t kDataBytes = 64;

std::vector<std::byte> FileOf(std::span<const std::byte> header) {
  const std::uint64_t length = header.size();
  std::vector<std::byte> file(sizeof(length) + header.size() + kDataBytes);
  std::memcpy(file.data(), &length, sizeof(length));
  std::memcpy(file.data() + sizeof(length), header.data(), header.size());
  return file;
}

void CheckIndex(const SafetensorsIndex& index, std::size_t file_size) {
  std::uint64_t num_bytes = 0;
  for (const auto& [name, entry] : index) {
    FORERUN_CHECK(entry.begin <= entry.end && entry.end <= file_size, "tensors lie in the file");
    std::uint64_t count = 1;
    for (const std::int64_t size : entry.shape) {
      FORERUN_CHECK(size >= 0, "shapes are not negative");
      count *= static_cast<std::uint64_t>(size);
    }
    FORERUN_CHECK(count * SizeOf(entry.dtype) == entry.end - entry.begin, "shapes fit the bytes");
    num_bytes += entry.end - entry.begin;
  }
  FORERUN_CHECK(num_bytes <= file_size, "tensors do not overlap");
}

void ReadAll(const std::string& directory) {
  Checkpoint checkpoint(directory);
  volatile unsigned sum = 0;  // so that every byte is really read
  for (const std::string& name : checkpoint.names()) {
    const TensorView view = checkpoint.Get(name);
    const auto* bytes = static_cast<const std::uint8_t*>(view.data);
    const std::int64_t num_bytes = view.num_elements() * SizeOf(view.dtype);
    for (std::int64_t i = 0; i < num_bytes; ++i) sum = sum + bytes[i];
    checkpoint.Drop(name);
  }
}

}  // namespace
}  // namespace forerun

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace forerun;
  if (size == 0) return 0;
  static const fuzz::ScratchDirectory directory;
  const auto rest = std::as_bytes(std::span(data + 1, size - 1));
  try {
    if (data[0] % 3 == 2) {
      static const std::string header =
          R"({"a":{"dtype":"F32","shape":[2,8],"data_offsets":[0,64]}})";
      directory.Write("s.safetensors", FileOf(std::as_bytes(std::span(header))));
      directory.Remove("model.safetensors");
      directory.Write("model.safetensors.index.json", rest);
    } else {
      const bool is_whole = data[0] % 3 == 0;
      const std::vector<std::byte> file =
          is_whole ? std::vector<std::byte>(rest.begin(), rest.end()) : FileOf(rest);
      directory.Write("model.safetensors", file);
      CheckIndex(ParseSafetensors(file, "fuzzed"), file.size());
    }
    ReadAll(directory.path());
  } catch (const CheckpointError&) {
  }
  return 0;
}
