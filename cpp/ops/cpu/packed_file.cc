#include "cpp/ops/cpu/packed_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "cpp/util/hash.h"
#include "cpp/util/thread_team.h"

namespace forerun {
namespace {

// What has one checksum, is written at once and may be one huge page of the file system's cache.
constexpr std::int64_t kChunk = std::int64_t{2} << 20;

// The end of a file. Before it, in this order: the weights, the key, the shapes and a checksum for
// each chunk of weights. In the byte order of the machine, for which the weights are.
struct Trailer {
  std::int64_t num_key_bytes = 0;
  std::int64_t num_shape_words = 0;
  std::int64_t num_data_bytes = 0;
  std::uint64_t checksum = 0;  // of the index, with the sizes above as its seed
  std::array<char, 8> magic = {'F', 'R', 'P', 'A', 'C', 'K', '0', '1'};
};

std::int64_t NumChunks(std::int64_t num_bytes) { return (num_bytes + kChunk - 1) / kChunk; }

// Of what lies between the weights and the trailer.
std::int64_t IndexBytes(const Trailer& trailer) {
  return trailer.num_key_bytes + trailer.num_shape_words * 4 +
         NumChunks(trailer.num_data_bytes) * 8;
}

// Four sums that do not wait for each other: memory is slower.
std::uint64_t Checksum(std::span<const std::byte> data, std::uint64_t seed = 0) {
  constexpr int kSums = 4;
  std::array<std::uint64_t, kSums> sums = {1, 2, 3, 4};
  std::size_t at = 0;
  for (; at + kSums * 8 <= data.size(); at += kSums * 8) {
    std::array<std::uint64_t, kSums> words;
    std::memcpy(words.data(), data.data() + at, sizeof(words));
    for (int i = 0; i < kSums; ++i) {
      sums[i] = (sums[i] ^ words[i]) * 0x9e3779b97f4a7c15u;
      sums[i] ^= sums[i] >> 32;
    }
  }
  std::uint64_t result = HashCombine(seed, data.size());
  for (std::uint64_t sum : sums) result = HashCombine(result, sum);
  for (; at < data.size(); ++at) result = HashCombine(result, std::to_integer<int>(data[at]));
  return result;
}

std::uint64_t IndexChecksum(std::span<const std::byte> index, const Trailer& trailer) {
  std::uint64_t seed = HashCombine(0, trailer.num_key_bytes);
  seed = HashCombine(seed, trailer.num_shape_words);
  return Checksum(index, HashCombine(seed, trailer.num_data_bytes));
}

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() { Close(); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }  // negative: none
  std::int64_t Size() const {
    struct stat status = {};
    return fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode) ? status.st_size : -1;
  }
  bool Read(void* to, std::int64_t num_bytes, std::int64_t offset) const {
    return Transfer(pread, static_cast<std::byte*>(to), num_bytes, offset) == 0;
  }
  // These return errno.
  int Write(const void* from, std::int64_t num_bytes, std::int64_t offset) const {
    return Transfer(pwrite, static_cast<const std::byte*>(from), num_bytes, offset);
  }
  int Close() {
    const int descriptor = std::exchange(descriptor_, -1);
    return descriptor < 0 || close(descriptor) == 0 ? 0 : errno;
  }

 private:
  template <typename Call, typename Byte>
  int Transfer(Call call, Byte* memory, std::int64_t num_bytes, std::int64_t offset) const {
    while (num_bytes > 0) {
      const ssize_t count = call(descriptor_, memory, num_bytes, offset);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return count < 0 ? errno : EIO;
      memory += count, offset += count, num_bytes -= count;
    }
    return 0;
  }

  int descriptor_;
};

// Whether the sizes are those of a file of so many bytes: nothing is allocated before this is
// known.
bool Fits(const Trailer& trailer, const std::string& key, std::int64_t num_bytes) {
  if (trailer.magic != Trailer().magic || trailer.num_key_bytes != std::ssize(key)) return false;
  for (std::int64_t size : {trailer.num_shape_words, trailer.num_data_bytes}) {
    if (size <= 0 || size > num_bytes) return false;
  }
  const auto trailer_bytes = static_cast<std::int64_t>(sizeof(Trailer));
  return trailer.num_data_bytes + IndexBytes(trailer) + trailer_bytes == num_bytes;
}

// Brings pages of a mapped file into memory. False where they cannot be read: touching them would
// raise SIGBUS.
bool Populate(const std::byte* begin, std::int64_t num_bytes) {
#if defined(MADV_POPULATE_READ)
  void* const address = const_cast<std::byte*>(begin);
  while (madvise(address, num_bytes, MADV_POPULATE_READ) != 0) {
    if (errno == EINVAL) return true;  // Linux before 5.14
    if (errno != EINTR && errno != EAGAIN) return false;
  }
#endif
  return true;
}

// Whether the mapping that begins here has a huge page of a file.
bool HasHugePage(const void* begin) {
  std::ostringstream address;
  address << std::hex << reinterpret_cast<std::uintptr_t>(begin) << "-";
  std::ifstream mappings("/proc/self/smaps");
  bool is_found = false;
  for (std::string line; std::getline(mappings, line);) {
    if (!is_found) {
      is_found = line.starts_with(address.str());
    } else if (line.starts_with("FilePmdMapped:")) {
      return line.find_first_of("123456789") != std::string::npos;
    }
  }
  return false;
}

}  // namespace

bool PackedFile::Map(int descriptor, std::int64_t num_bytes) {
  // So that huge pages of the file can be huge pages of this process.
  num_mapped_ = num_bytes + kChunk;
  mapped_ = mmap(nullptr, num_mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) return false;
  void* begin = mapped_;
  std::size_t size = num_mapped_;
  std::align(kChunk, num_bytes, begin, size);
  const auto map = [&](int protection, int flags, int file) {
    if (mmap(begin, num_bytes, protection, flags | MAP_FIXED, file, 0) == MAP_FAILED) return false;
#if defined(MADV_HUGEPAGE)
    // Best effort: where it fails, the pages are small.
    static_cast<void>(madvise(begin, num_bytes, MADV_HUGEPAGE));
#endif
    return true;
  };
  data_ = {static_cast<const std::byte*>(begin), static_cast<std::size_t>(num_bytes)};
  is_shared_ = num_bytes >= kChunk && map(PROT_READ, MAP_SHARED, descriptor) &&
               Populate(data_.data(), kChunk) && HasHugePage(begin);
  return is_shared_ || map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

PackedFile::~PackedFile() {
  if (mapped_ != nullptr && mapped_ != MAP_FAILED) munmap(mapped_, num_mapped_);
}

std::unique_ptr<PackedFile> PackedFile::Open(const std::string& path, const std::string& key,
                                             ThreadTeam& team) {
  const File file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.descriptor() < 0) return nullptr;
  Trailer trailer;
  const std::int64_t trailer_begin = file.Size() - static_cast<std::int64_t>(sizeof(trailer));
  if (trailer_begin < 0 || !file.Read(&trailer, sizeof(trailer), trailer_begin) ||
      !Fits(trailer, key, file.Size())) {
    return nullptr;
  }
  std::vector<std::byte> index(IndexBytes(trailer));
  if (!file.Read(index.data(), std::ssize(index), trailer.num_data_bytes) ||
      IndexChecksum(index, trailer) != trailer.checksum ||
      std::memcmp(index.data(), key.data(), key.size()) != 0) {
    return nullptr;
  }
  std::unique_ptr<PackedFile> result(new PackedFile());
  if (!result->Map(file.descriptor(), trailer.num_data_bytes)) return nullptr;
  const std::byte* const shapes = index.data() + key.size();
  const std::byte* const sums = shapes + trailer.num_shape_words * 4;
  result->shapes_.resize(trailer.num_shape_words);
  std::memcpy(result->shapes_.data(), shapes, trailer.num_shape_words * 4);
  std::atomic<bool> is_whole = true;
  team.Run(static_cast<int>(NumChunks(trailer.num_data_bytes)), [&](int chunk) {
    const std::int64_t begin = chunk * kChunk;
    const auto bytes =
        result->data().subspan(begin, std::min(kChunk, trailer.num_data_bytes - begin));
    std::uint64_t expected = 0;
    std::memcpy(&expected, sums + chunk * 8, sizeof(expected));
    const bool is_read = result->is_shared_ ? Populate(bytes.data(), std::ssize(bytes))
                                            : file.Read(const_cast<std::byte*>(bytes.data()),
                                                        std::ssize(bytes), begin);
    if (!is_read || Checksum(bytes) != expected) is_whole = false;
  });
  return is_whole ? std::move(result) : nullptr;
}

namespace {

// Writes the spans one after the other from the begin of the file, by all threads, and adds the
// chunks' checksums to `sums`. Returns errno.
int WriteChunks(const File& file, std::span<const std::span<const std::byte>> data,
                std::vector<std::uint64_t>& sums, ThreadTeam& team) {
  std::vector<std::int64_t> begins = {0};  // of each span in the file
  for (const auto& span : data) begins.push_back(begins.back() + std::ssize(span));
  sums.resize(NumChunks(begins.back()));
  std::vector<std::vector<std::byte>> chunks(team.num_threads());
  std::atomic<int> error = 0;
  team.Run(static_cast<int>(sums.size()), [&](int i, int member) {
    std::vector<std::byte>& chunk = chunks[member];
    chunk.clear();
    const std::int64_t begin = i * kChunk, end = std::min(begin + kChunk, begins.back());
    auto span = std::ranges::upper_bound(begins, begin) - begins.begin() - 1;
    for (std::int64_t at = begin; at < end; ++span) {
      const std::int64_t part_end = std::min(end, begins[span + 1]);
      const std::byte* const from = data[span].data() - begins[span];
      chunk.insert(chunk.end(), from + at, from + part_end);
      at = part_end;
    }
    sums[i] = Checksum(chunk);
    if (const int failed = file.Write(chunk.data(), std::ssize(chunk), begin)) error = failed;
  });
  return error;
}

// What follows the weights in a file.
std::vector<std::byte> MakeIndex(const std::string& key, const ShapeWords& shapes,
                                 const std::vector<std::uint64_t>& sums,
                                 std::int64_t num_data_bytes) {
  Trailer trailer;
  trailer.num_key_bytes = std::ssize(key);
  trailer.num_shape_words = std::ssize(shapes);
  trailer.num_data_bytes = num_data_bytes;
  std::vector<std::byte> bytes;
  const auto append = [&](const void* from, std::size_t num_bytes) {
    const auto* begin = static_cast<const std::byte*>(from);
    bytes.insert(bytes.end(), begin, begin + num_bytes);
  };
  append(key.data(), key.size());
  append(shapes.data(), shapes.size() * 4);
  append(sums.data(), sums.size() * 8);
  trailer.checksum = IndexChecksum(bytes, trailer);
  append(&trailer, sizeof(trailer));
  return bytes;
}

}  // namespace

std::string WritePackedFile(const std::string& path, const std::string& key,
                            const ShapeWords& shapes,
                            std::span<const std::span<const std::byte>> data, ThreadTeam& team) {
  std::error_code failed;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), failed);
  if (failed) return failed.message();
  std::string temporary = path + ".XXXXXX";
  File file(mkostemp(temporary.data(), O_CLOEXEC));
  const auto message = [](int error) { return std::generic_category().message(error); };
  if (file.descriptor() < 0) return message(errno);
  std::vector<std::uint64_t> sums;
  int error = WriteChunks(file, data, sums, team);
  if (error == 0) {
    std::int64_t num_bytes = 0;
    for (const auto& span : data) num_bytes += std::ssize(span);
    const std::vector<std::byte> index = MakeIndex(key, shapes, sums, num_bytes);
    error = file.Write(index.data(), std::ssize(index), num_bytes);
  }
  if (const int closed = file.Close(); error == 0) error = closed;
  if (error == 0 && rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return "";
  unlink(temporary.c_str());
  return message(error);
}

}  // namespace forerun
