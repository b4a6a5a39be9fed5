// Packed weights in a file: the same bytes as packed ones, also of a damaged file.
#include "cpp/ops/cpu/packed_cache.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <thread>

#include "tests/cpp/ops/integers_testing.h"

namespace forerun {
namespace {

namespace fs = std::filesystem;

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteAll(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Some matrices of several formats, one of them with two parts.
class Model {
 public:
  explicit Model(unsigned seed, int num_outputs = 40) : random_(seed) {
    floats_.emplace_back(random_, num_outputs, 96);
    floats_.emplace_back(random_, 17, 33);
    sources_ = {{WeightSource(floats_[0].view, WeightFormat::kInt8)},
                {WeightSource(floats_[1].view, WeightFormat::kBFloat16)},
                {WeightSource(floats_[1].view, WeightFormat::kInt4),
                 WeightSource(floats_[1].view, WeightFormat::kFloat32)}};
  }
  const std::vector<std::vector<WeightSource>>& matrices() const { return sources_; }

 private:
  Random random_;
  std::vector<TestWeight> floats_;
  std::vector<std::vector<WeightSource>> sources_;
};

struct Loaded {
  std::string bytes;  // of all matrices
  bool is_restored = false;
  std::string problem;
};

// As a load does: restores what it can, packs the rest.
Loaded Load(const Model& model, const std::string& path, const std::string& key = "key") {
  ThreadTeam team(2);
  WeightArena arena;
  const auto file = PackedFile::Open(path, key, team);
  PackedCache cache(path, key, file.get(), team);
  Loaded loaded;
  for (const auto& sources : model.matrices()) {
    const int num_inputs = std::get<TensorView>(sources[0].weights).shape[1];
    auto matrix = cache.Restore(ShapesOf(sources), num_inputs);
    if (matrix == nullptr) {
      matrix = PackMatrix(sources, team, IntegerKernelsOf(Isa::kPortable), arena);
      cache.Add(*matrix);
    }
    const auto data = matrix->data();
    loaded.bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
  }
  loaded.is_restored = cache.is_restored();
  loaded.problem = cache.Finish();
  return loaded;
}

class PackedCacheTest : public ::testing::Test {
 protected:
  PackedCacheTest() { fs::remove_all(folder_); }
  ~PackedCacheTest() override { fs::remove_all(folder_); }

  // That a load of this file packs, with the right bytes, and leaves a whole file.
  void ExpectMended(const Model& model, const Loaded& expected) {
    const Loaded packed = Load(model, path_);
    EXPECT_FALSE(packed.is_restored);
    EXPECT_EQ(packed.problem, "");
    EXPECT_TRUE(packed.bytes == expected.bytes);
    EXPECT_TRUE(ReadAll(path_) == whole_);
  }

  const fs::path folder_ =
      fs::path(::testing::TempDir()) / ("packed_cache_" + std::to_string(::getpid()));
  const std::string path_ = (folder_ / "deep" / "a.packed").string();
  std::string whole_;
};

TEST_F(PackedCacheTest, TheSecondLoadReadsWhatTheFirstPacked) {
  const Model model(1);
  const Loaded first = Load(model, path_);
  EXPECT_FALSE(first.is_restored);
  EXPECT_EQ(first.problem, "");
  const Loaded second = Load(model, path_);
  EXPECT_TRUE(second.is_restored);
  EXPECT_TRUE(second.bytes == first.bytes);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "deep"), {}), 1);
}

TEST_F(PackedCacheTest, AnotherKeyPacksAndReplacesTheFile) {
  const Model one(1), other(2);
  Load(one, path_, "one");
  const Loaded second = Load(other, path_, "two");
  EXPECT_FALSE(second.is_restored);
  EXPECT_TRUE(Load(other, path_, "two").bytes == second.bytes);
  EXPECT_FALSE(Load(one, path_, "one").is_restored);
}

TEST_F(PackedCacheTest, OtherShapesArePackedAndTheFileIsWrittenAnew) {
  const Model small(1, 40), large(1, 41);
  Load(small, path_);
  const Loaded loaded = Load(large, path_);
  EXPECT_FALSE(loaded.is_restored);
  EXPECT_TRUE(Load(large, path_).is_restored);
  EXPECT_TRUE(Load(large, path_).bytes == loaded.bytes);
}

TEST_F(PackedCacheTest, ADamagedFileIsPackedAgain) {
  const Model model(3);
  const Loaded expected = Load(model, path_);
  whole_ = ReadAll(path_);
  const int size = static_cast<int>(whole_.size());
  Random random(4);
  for (int round = 0; round < 200; ++round) {
    std::string bytes = whole_;
    if (round % 4 == 0) {
      bytes.resize(random.Below(size));
    } else if (round % 4 == 1) {
      bytes.append(1 + random.Below(5000), 'x');
    } else {
      const int at = round % 4 == 2 ? size - 1 - random.Below(200) : random.Below(size);
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.Below(8)));
    }
    WriteAll(path_, bytes);
    ExpectMended(model, expected);
    ASSERT_FALSE(HasFailure()) << round;
  }
}

TEST_F(PackedCacheTest, NoByteCanChangeUnnoticed) {
  const Model model(3);
  Load(model, path_);
  whole_ = ReadAll(path_);
  ThreadTeam team(1);
  Random random(5);
  std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
  const auto write = [&](std::size_t at, char byte) {
    file.seekp(static_cast<std::streamoff>(at));
    file.put(byte).flush();
  };
  for (std::size_t at = 0; at < whole_.size(); ++at) {
    write(at, static_cast<char>(whole_[at] ^ (1 + random.Below(255))));
    ASSERT_EQ(PackedFile::Open(path_, "key", team), nullptr) << at;
    write(at, whole_[at]);
  }
  EXPECT_NE(PackedFile::Open(path_, "key", team), nullptr);
}

TEST_F(PackedCacheTest, SizesThatAFileClaimsAreNotBelieved) {
  const Model model(3);
  const Loaded expected = Load(model, path_);
  whole_ = ReadAll(path_);
  for (int field = 1; field <= 5; ++field) {
    for (std::int64_t value :
         {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1} << 40,
          std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()}) {
      std::string bytes = whole_;
      std::memcpy(&bytes[bytes.size() - field * 8], &value, sizeof(value));
      WriteAll(path_, bytes);
      ExpectMended(model, expected);
    }
  }
}

TEST_F(PackedCacheTest, WeightsOfSeveralChunksAreKept) {
  Random random(8);
  ThreadTeam team(3);
  std::vector<std::byte> bytes(9 << 20);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.Below(256));
  const std::span<const std::byte> all(bytes);
  // Within a chunk, over the border of two, over three, and to the end of one.
  const std::vector<std::span<const std::byte>> data = {
      all.first(64), all.subspan(64, 3 << 20), all.subspan((3 << 20) + 64, 5 << 20),
      all.subspan((8 << 20) + 64, (1 << 20) - 64)};
  ASSERT_EQ(WritePackedFile(path_, "key", {1, 2}, data, team), "");
  const auto file = PackedFile::Open(path_, "key", team);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->shapes(), ShapeWords({1, 2}));
  EXPECT_TRUE(std::ranges::equal(file->data(), all));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file->data().data()) % 64, 0);
  // The file system keeps what is written in small pieces in small pages.
  whole_ = ReadAll(path_);
  fs::remove(path_);
  WriteAll(path_, whole_);
  const auto other = PackedFile::Open(path_, "key", team);
  ASSERT_NE(other, nullptr);
  EXPECT_TRUE(std::ranges::equal(other->data(), all));
  fs::remove(path_);
  EXPECT_TRUE(std::ranges::equal(file->data(), all));
  // In the last bytes of each chunk.
  for (int end : {2 << 20, 4 << 20, 6 << 20, 8 << 20, 9 << 20}) {
    std::string damaged = whole_;
    damaged[end - 1] = static_cast<char>(damaged[end - 1] + 1);
    WriteAll(path_, damaged);
    EXPECT_EQ(PackedFile::Open(path_, "key", team), nullptr) << end;
  }
}

TEST_F(PackedCacheTest, AFileIsReplacedAndRemovedWhileItIsUsed) {
  const Model model(1), other(2);
  const Loaded expected = Load(model, path_);
  ThreadTeam team(2);
  const auto file = PackedFile::Open(path_, "key", team);
  const std::vector<std::byte> before(file->data().begin(), file->data().end());
  Load(other, path_, "other");
  EXPECT_TRUE(std::ranges::equal(file->data(), before));
  fs::remove(path_);
  EXPECT_TRUE(std::ranges::equal(file->data(), before));
}

TEST_F(PackedCacheTest, AFolderOrAnUnwritableFolderIsNoError) {
  const Model model(5);
  const Loaded expected = Load(model, path_);
  fs::remove(path_);
  fs::create_directories(path_ + "/full");  // where the file should be
  Loaded loaded = Load(model, path_);
  EXPECT_TRUE(loaded.bytes == expected.bytes);
  EXPECT_NE(loaded.problem, "");
  loaded = Load(model, "/dev/null/x/a.packed");
  EXPECT_TRUE(loaded.bytes == expected.bytes);
  EXPECT_NE(loaded.problem, "");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "deep"), {}), 1);  // nothing left over
}

TEST_F(PackedCacheTest, WritersAndReadersAtOnceSeeWholeFiles) {
  const Model model(6), other(7);
  const std::string expected = Load(model, path_, "a").bytes;
  const std::string of_other = Load(other, path_, "b").bytes;
  std::vector<std::thread> threads;
  std::atomic<int> num_wrong = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 30; ++round) {
        const bool is_first = (i + round) % 2 == 0;
        const Loaded loaded = Load(is_first ? model : other, path_, is_first ? "a" : "b");
        if (loaded.bytes != (is_first ? expected : of_other) || !loaded.problem.empty()) {
          ++num_wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, 0);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "deep"), {}), 1);
}

}  // namespace
}  // namespace forerun
