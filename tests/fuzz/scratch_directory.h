// A model directory in memory, rewritten for every input.
#ifndef FORERUN_TESTS_FUZZ_SCRATCH_DIRECTORY_H_
#define FORERUN_TESTS_FUZZ_SCRATCH_DIRECTORY_H_

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>

namespace forerun::fuzz {

class ScratchDirectory {
 public:
  ScratchDirectory() {
    const bool has_memory = std::filesystem::is_directory("/dev/shm");
    std::string path = std::string(has_memory ? "/dev/shm" : "/tmp") + "/forerun-fuzz-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) std::abort();
    path_ = path;
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }

  void Write(const char* name, std::span<const std::byte> content) const {
    std::ofstream file(std::filesystem::path(path_) / name, std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(content.data()),
               static_cast<std::streamsize>(content.size()));
  }
  void Remove(const char* name) const {
    std::filesystem::remove(std::filesystem::path(path_) / name);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace forerun::fuzz

#endif  // FORERUN_TESTS_FUZZ_SCRATCH_DIRECTORY_H_
