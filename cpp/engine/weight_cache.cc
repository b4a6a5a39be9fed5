#include "cpp/engine/weight_cache.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <vector>

#include "cpp/model/checkpoint/weight_files.h"
#include "cpp/ops/cuda_library.h"
#include "cpp/util/hash.h"

namespace forerun {
namespace {

namespace fs = std::filesystem;

constexpr char kSuffix[] = ".packed";
constexpr int kNumSamples = 64;  // of each file
constexpr std::int64_t kSampleBytes = 4096;

std::uint64_t Hash(const char* data, std::int64_t num_bytes, std::uint64_t seed) {
  for (std::int64_t i = 0; i < num_bytes; ++i) {
    seed = (seed ^ static_cast<unsigned char>(data[i])) * 0x100000001b3u;
  }
  return MixBits(seed ^ static_cast<std::uint64_t>(num_bytes));
}

std::uint64_t HashSamples(const fs::path& path, std::int64_t size) {
  std::ifstream file(path, std::ios::binary);
  std::array<char, kSampleBytes> sample;
  std::uint64_t hash = 0;
  for (int i = 0; i < kNumSamples; ++i) {
    file.seekg(std::max<std::int64_t>(0, size - kSampleBytes) / (kNumSamples - 1) * i);
    file.read(sample.data(), kSampleBytes);
    hash = Hash(sample.data(), file.gcount(), hash);
    file.clear();
  }
  return hash;
}

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string Describe(const timespec& time) {
  return std::to_string(time.tv_sec) + "." + std::to_string(time.tv_nsec);
}

// A change of the bytes changes the second time even where a copy has kept the first.
std::string Describe(const fs::path& path) {
  struct stat status = {};
  stat(path.c_str(), &status);
  return path.filename().string() + " " + std::to_string(status.st_size) + " " +
         Describe(status.st_mtim) + " " + Describe(status.st_ctim) + " " +
         std::to_string(HashSamples(path, status.st_size)) + "\n";
}

std::string Describe(const MatrixFormat& format) {
  return std::string(Name(format.format)) + (format.keep_integers ? " or as stored" : "");
}

struct Entry {
  fs::path path;
  fs::file_time_type time;
  std::int64_t size;
};

// As mkostemp names it.
bool IsTemporary(const fs::path& path) {
  return path.stem().extension() == kSuffix && path.extension().string().size() == 7;
}

std::string LoadAndKeep(const WeightCacheOptions& options, const ModelFiles& files, CpuOps& ops,
                        const std::function<void()>& load) {
  const std::string key = WeightCacheKey(files, ops.isa());
  const std::string path = WeightCachePath(options.directory, key);
  ops.OpenCache(path, key);
  load();
  CpuOps::CacheOutcome outcome;
  try {
    outcome = ops.CloseCache([&](std::int64_t num_bytes) -> std::string {
      if (WeightCacheKey(files, ops.isa()) != key) return "the model's files changed meanwhile";
      return MakeRoom(options.directory, num_bytes, options.max_bytes);
    });
  } catch (const std::exception& error) {
    outcome.problem = error.what();
    ops.DropCache();
  }
  if (!outcome.problem.empty()) return "not written: " + outcome.problem;
  if (!outcome.is_restored) return "written";
  std::error_code ignored;  // it may be read-only
  fs::last_write_time(path, fs::file_time_type::clock::now(), ignored);
  return "read";
}

}  // namespace

std::string WeightCacheKey(const ModelFiles& files, const std::string& isa) {
  const fs::path root(files.checkpoint.directory());
  std::string key = std::string(BuildId()) + ", " + isa + "\n";
  const WeightFiles weights = FindWeightFiles(root.string());
  for (const std::string& name : weights.names) key += Describe(root / name);
  if (!weights.index_name.empty()) key += Describe(root / weights.index_name);
  const ModelFormats& formats = files.formats;
  key += "linear " + Describe(formats.linear) + ", embedding " + Describe(formats.embedding) +
         ", head " + Describe(formats.head) + "\n";
  return key + ReadAll(root / "config.json");
}

std::string WeightCachePath(const std::string& directory, const std::string& key) {
  std::array<char, 33> name;
  std::snprintf(name.data(), name.size(), "%016llx%016llx",
                static_cast<unsigned long long>(Hash(key.data(), std::ssize(key), 1)),
                static_cast<unsigned long long>(Hash(key.data(), std::ssize(key), 2)));
  return (fs::path(directory) / (name.data() + std::string(kSuffix))).string();
}

std::string MakeRoom(const std::string& directory, std::int64_t num_bytes, std::int64_t max_bytes) {
  if (num_bytes > max_bytes) return "they are larger than the whole cache may be";
  std::error_code error;
  std::vector<Entry> entries;
  std::int64_t total = 0;
  const auto now = fs::file_time_type::clock::now();
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    const Entry entry = {it->path(), it->last_write_time(ignored),
                         static_cast<std::int64_t>(it->file_size(ignored))};
    if (ignored) continue;
    if (IsTemporary(entry.path) && now - entry.time > std::chrono::hours(1)) {
      fs::remove(entry.path, ignored);
    }
    if (entry.path.extension() != kSuffix) continue;
    entries.push_back(entry);
    total += entry.size;
  }
  std::ranges::sort(entries, {}, &Entry::time);
  for (const Entry& entry : entries) {
    if (total + num_bytes <= max_bytes) break;
    fs::remove(entry.path, error);
    total -= entry.size;
  }
  fs::create_directories(directory, error);
  const fs::space_info space = fs::space(directory, error);
  // As much again stays free.
  if (!error && space.available / 2 < static_cast<std::uintmax_t>(num_bytes)) {
    return "the disk has too little room";
  }
  return "";
}

std::string LoadWithCache(const WeightCacheOptions& options, const ModelFiles& files, CpuOps& ops,
                          const std::function<void()>& load) {
  if (options.directory.empty() || options.max_bytes == 0) {
    load();
    return "off";
  }
  try {
    return LoadAndKeep(options, files, ops, load);
  } catch (...) {
    ops.DropCache();
    throw;
  }
}

}  // namespace forerun
