// A temporary model directory, removed by its destructor.
#ifndef FORERUN_TESTS_CPP_TESTING_MODEL_DIRECTORY_H_
#define FORERUN_TESTS_CPP_TESTING_MODEL_DIRECTORY_H_

#include <unistd.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpp/tensor/dtype.h"

namespace forerun {

// A tensor to write; `bytes` are as the file holds them.
struct NamedTensor {
  std::string name;
  std::string dtype;  // "F32", "BF16", "F16", ...
  std::vector<std::int64_t> shape;
  std::string bytes;
};

inline NamedTensor Float32Tensor(const std::string& name, std::vector<std::int64_t> shape,
                                 const std::vector<float>& values) {
  const char* data = reinterpret_cast<const char*>(values.data());
  return {name, "F32", std::move(shape), std::string(data, values.size() * sizeof(float))};
}

inline NamedTensor BFloat16Tensor(const std::string& name, std::vector<std::int64_t> shape,
                                  const std::vector<float>& values) {
  std::string bytes;
  for (float value : values) {
    const std::uint16_t bits = FloatToBFloat16(value);
    bytes.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
  }
  return {name, "BF16", std::move(shape), bytes};
}

inline std::string LittleEndian64(std::uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> (8 * i) & 0xff));
  return bytes;
}

// A safetensors file around a header of any content.
inline std::string SafetensorsFile(const std::string& header, const std::string& data) {
  return LittleEndian64(header.size()) + header + data;
}

// The header starts with padding so that the data begins at a multiple of 8 plus `misalignment`.
inline std::string SafetensorsBytes(const std::vector<NamedTensor>& tensors, int misalignment = 0) {
  std::string header = "{", data;
  for (const NamedTensor& tensor : tensors) {
    if (header.size() > 1) header += ",";
    std::string shape;
    for (std::int64_t extent : tensor.shape) {
      if (!shape.empty()) shape += ",";
      shape += std::to_string(extent);
    }
    header += "\"" + tensor.name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[" + shape +
              "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + tensor.bytes.size()) + "]}";
    data += tensor.bytes;
  }
  header += "}";
  while (header.size() % 8 != static_cast<std::size_t>(misalignment)) header += " ";
  return SafetensorsFile(header, data);
}

class ModelDirectory {
 public:
  ModelDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "forerun_test_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~ModelDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  ModelDirectory(const ModelDirectory&) = delete;
  ModelDirectory& operator=(const ModelDirectory&) = delete;

  const std::string& path() const { return path_; }
  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(std::filesystem::path(path_) / name, std::ios::binary) << content;
  }
  void WriteTensors(const std::vector<NamedTensor>& tensors,
                    const std::string& name = "model.safetensors") const {
    Write(name, SafetensorsBytes(tensors));
  }

 private:
  std::string path_;
};

}  // namespace forerun

#endif  // FORERUN_TESTS_CPP_TESTING_MODEL_DIRECTORY_H_
