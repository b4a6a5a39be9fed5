// Packed weights in a file, for the next processes that pack the same.
//
// A file belongs to a key, a text that names everything the packed bytes depend on. It is written
// whole or not at all. When it is opened, its index and each part of its weights are compared with
// their checksums: one that is damaged, or of another key, counts as none.
//
// Where the system keeps the file in huge pages (ext4 since Linux 6.16, XFS), it is mapped, so that
// processes share its pages. Elsewhere it is copied into huge pages of the process: from small
// ones, products of one row are 5 % slower or more.
#ifndef FORERUN_CPP_OPS_CPU_PACKED_FILE_H_
#define FORERUN_CPP_OPS_CPU_PACKED_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace forerun {

class ThreadTeam;

// The shapes of matrices in the order in which they are packed, as PackedCache writes them.
using ShapeWords = std::vector<std::int32_t>;

class PackedFile {
 public:
  // Null: there is no such file, or it is damaged or of another key.
  static std::unique_ptr<PackedFile> Open(const std::string& path, const std::string& key,
                                          ThreadTeam& team);
  ~PackedFile();

  PackedFile(const PackedFile&) = delete;
  PackedFile& operator=(const PackedFile&) = delete;

  const ShapeWords& shapes() const { return shapes_; }
  bool is_shared() const { return is_shared_; }
  // Of all matrices, without gaps, aligned to 64 bytes. Valid until the file is closed.
  std::span<const std::byte> data() const { return data_; }

 private:
  PackedFile() = default;
  bool Map(int descriptor, std::int64_t num_bytes);

  ShapeWords shapes_;
  bool is_shared_ = false;  // mapped, not copied
  void* mapped_ = nullptr;
  std::size_t num_mapped_ = 0;
  std::span<const std::byte> data_;  // in `mapped_`
};

// Replaces the file, where there is one, in one go; makes its directory where there is none.
// Returns what went wrong, as in "No space left on device"; empty: nothing.
std::string WritePackedFile(const std::string& path, const std::string& key,
                            const ShapeWords& shapes,
                            std::span<const std::span<const std::byte>> data, ThreadTeam& team);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_PACKED_FILE_H_
