// Checkpoints written byte by byte: what is read back, and the error that each kind of damage
// gives.
#include "cpp/model/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "forerun/error.h"
#include "tests/cpp/testing/model_directory.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// The error of `action`, or an empty one.
CheckpointError ErrorOf(const std::function<void()>& action) {
  try {
    action();
  } catch (const CheckpointError& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return CheckpointError("", "", "");
}

void ExpectRefused(const std::string& file, const std::string& field, const std::string& value) {
  const CheckpointError error =
      ErrorOf([&] { ParseSafetensors(AsBytes(file), "model.safetensors"); });
  EXPECT_NE(error.field().find(field), std::string::npos) << error.what();
  EXPECT_NE(error.value().find(value), std::string::npos) << error.what();
  EXPECT_FALSE(error.expected().empty());
}

// One tensor 'a' with these JSON fields, in front of 8 bytes of data.
std::string OneTensor(const std::string& fields, const std::string& data = "12345678") {
  return SafetensorsFile(std::string("{\"a\":{") + fields + "}}", data);
}

TEST(SafetensorsTest, ReadsBackEveryTensorOfASingleFile) {
  ModelDirectory directory;
  directory.WriteTensors({Float32Tensor("b.weight", {2, 3}, {1, 2, 3, 4, 5, 6}),
                          BFloat16Tensor("a.weight", {2}, {0.5f, -3.0f}),
                          Float32Tensor("scalar", {}, {7}), Float32Tensor("empty", {0, 4}, {})});
  Checkpoint checkpoint(directory.path());
  EXPECT_EQ(checkpoint.names(),
            (std::vector<std::string>{"a.weight", "b.weight", "empty", "scalar"}));
  EXPECT_TRUE(checkpoint.Contains("scalar"));
  EXPECT_FALSE(checkpoint.Contains("b"));

  const TensorView b = checkpoint.Get("b.weight");
  EXPECT_EQ(b.dtype, DType::kFloat32);
  EXPECT_EQ(b.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(static_cast<const float*>(b.data)[5], 6.0f);
  const TensorView a = checkpoint.Get("a.weight");
  EXPECT_EQ(a.dtype, DType::kBFloat16);
  EXPECT_EQ(BFloat16ToFloat(static_cast<const std::uint16_t*>(a.data)[1]), -3.0f);
  EXPECT_EQ(static_cast<const float*>(checkpoint.Get("scalar").data)[0], 7.0f);
  EXPECT_EQ(checkpoint.Get("empty").num_elements(), 0);
}

TEST(SafetensorsTest, ADroppedTensorIsReadAgain) {
  ModelDirectory directory;
  std::vector<float> values(5000);
  for (int i = 0; i < 5000; ++i) values[i] = static_cast<float>(i);
  directory.WriteTensors({Float32Tensor("a", {5000}, values), Float32Tensor("b", {1}, {-1})});
  Checkpoint checkpoint(directory.path());
  checkpoint.Drop("a");
  EXPECT_EQ(static_cast<const float*>(checkpoint.Get("b").data)[0], -1.0f);
  EXPECT_EQ(std::memcmp(checkpoint.Get("a").data, values.data(), sizeof(float) * 5000), 0);
}

TEST(SafetensorsTest, TensorsThatTheFileMisalignsAreHandedOutAligned) {
  ModelDirectory directory;
  directory.Write("model.safetensors",
                  SafetensorsBytes({Float32Tensor("a", {2}, {1.5f, 2.5f})}, /*misalignment=*/3));
  Checkpoint checkpoint(directory.path());
  for (int round = 0; round < 2; ++round) {
    const TensorView view = checkpoint.Get("a");
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.data) % alignof(float), 0u);
    EXPECT_EQ(static_cast<const float*>(view.data)[1], 2.5f);
    checkpoint.Drop("a");
  }
}

TEST(SafetensorsTest, ReadsShardsThroughTheirIndex) {
  ModelDirectory directory;
  directory.WriteTensors({Float32Tensor("a", {1}, {1})}, "model-00001-of-00002.safetensors");
  directory.WriteTensors({Float32Tensor("b", {1}, {2}), Float32Tensor("c", {1}, {3})},
                         "model-00002-of-00002.safetensors");
  directory.Write("model.safetensors.index.json",
                  R"({"metadata": {"total_size": 12}, "weight_map": {
                      "a": "model-00001-of-00002.safetensors",
                      "b": "model-00002-of-00002.safetensors",
                      "c": "model-00002-of-00002.safetensors"}})");
  Checkpoint checkpoint(directory.path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(static_cast<const float*>(checkpoint.Get("c").data)[0], 3.0f);
}

TEST(SafetensorsTest, MetadataIsNotATensor) {
  const std::string file = SafetensorsFile(R"({"__metadata__":{"format":"pt"}})", "");
  EXPECT_TRUE(ParseSafetensors(AsBytes(file), "f").empty());
}

TEST(SafetensorsTest, AskingForAnAbsentTensorNamesIt) {
  ModelDirectory directory;
  directory.WriteTensors({Float32Tensor("a", {1}, {1})});
  Checkpoint checkpoint(directory.path());
  EXPECT_EQ(ErrorOf([&] { checkpoint.Get("model.norm.weight"); }).field(),
            "tensor 'model.norm.weight'");
}

TEST(SafetensorsTest, ADirectoryWithoutACheckpointSaysWhatItLooksFor) {
  ModelDirectory directory;
  const CheckpointError empty = ErrorOf([&] { Checkpoint checkpoint(directory.path()); });
  EXPECT_NE(empty.expected().find("model.safetensors"), std::string::npos);
  directory.Write("pytorch_model.bin", "");
  const CheckpointError pickle = ErrorOf([&] { Checkpoint checkpoint(directory.path()); });
  EXPECT_NE(pickle.value().find("pytorch_model.bin"), std::string::npos);
  ErrorOf([&] { Checkpoint checkpoint(directory.path() + "/nowhere"); });
}

// Valid JSON that a recursive reader runs out of stack on.
std::string NestedLists(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(SafetensorsTest, BrokenIndexesAreRefused) {
  ModelDirectory directory;
  directory.WriteTensors({Float32Tensor("a", {1}, {1})}, "shard.safetensors");
  const auto error_with = [&](const std::string& index) {
    directory.Write("model.safetensors.index.json", index);
    return std::string(ErrorOf([&] { Checkpoint checkpoint(directory.path()); }).what());
  };
  const auto expect = [&](const std::string& index, const std::string& part) {
    const std::string message = error_with(index);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect("", "not JSON");
  expect("[]", "a JSON object");
  expect("{}", "weight_map");
  expect(R"({"weight_map": 3})", "weight_map");
  expect(R"({"weight_map": {"a": 3}})", "weight_map.a");
  expect(R"({"weight_map": {"a": "../shard.safetensors"}})", "weight_map.a");
  expect(R"({"weight_map": {"a": "/etc/passwd"}})", "weight_map.a");
  expect(R"({"weight_map": {"a": "gone.safetensors"}})", "gone.safetensors: got no such file");
  expect(R"({"weight_map": {"b": "shard.safetensors"}})", "tensor 'b'");
  expect(R"({"weight_map": {"a": )" + NestedLists(200'000) + "}}", "200002 levels deep");
}

TEST(SafetensorsTest, TruncatedFilesAreRefused) {
  const std::string whole = SafetensorsBytes({Float32Tensor("a", {4}, {1, 2, 3, 4})});
  for (std::size_t length = 0; length < whole.size(); ++length) {
    const std::string part = whole.substr(0, length);
    EXPECT_THROW(ParseSafetensors(AsBytes(part), "model.safetensors"), CheckpointError) << length;
  }
  ExpectRefused("", "model.safetensors", "0 bytes");
  ExpectRefused(whole.substr(0, 20), "header length", "bytes");
  ExpectRefused(whole.substr(0, whole.size() - 1), "tensor 'a': data_offsets", "[0,16]");
  ExpectRefused(whole + "x", "model.safetensors", "1 bytes after the last tensor");
}

TEST(SafetensorsTest, HeadersThatAreNotTensorListsAreRefused) {
  ExpectRefused(LittleEndian64(~0ull), "header length", "18446744073709551615");
  ExpectRefused(SafetensorsFile("{", ""), "header", "not JSON");
  ExpectRefused(SafetensorsFile("[1]", ""), "header", "[1]");
  ExpectRefused(SafetensorsFile("{\"a\xff\":1}", ""), "header", "not JSON");
  ExpectRefused(SafetensorsFile(R"({"a":1e999})", ""), "header", "out of range");
  ExpectRefused(SafetensorsFile(R"({"a":7})", ""), "tensor 'a'", "7");
  ExpectRefused(SafetensorsFile(std::string(100'000, '['), ""), "header", "100000 levels deep");
  ExpectRefused(SafetensorsFile(R"({"a":)" + NestedLists(200'000) + "}", ""), "header",
                "200001 levels deep");
  ExpectRefused(SafetensorsFile(R"({"__metadata__":)" + NestedLists(200'000) + "}", ""), "header",
                "200001 levels deep");
}

TEST(SafetensorsTest, EntriesThatContradictThemselvesAreRefused) {
  const std::string dtype = R"("dtype":"F32",)", shape = R"("shape":[2],)";
  const std::string offsets = R"("data_offsets":[0,8])";
  EXPECT_EQ(ParseSafetensors(AsBytes(OneTensor(dtype + shape + offsets)), "f").size(), 1u);

  ExpectRefused(OneTensor(shape + offsets), "tensor 'a': dtype", "shape");
  ExpectRefused(OneTensor(R"("dtype":"F8_E4M3",)" + shape + offsets), "dtype", "F8_E4M3");
  ExpectRefused(OneTensor(R"("dtype":3,)" + shape + offsets), "dtype", "3");
  ExpectRefused(OneTensor(dtype + R"("shape":2,)" + offsets), "shape", "2");
  ExpectRefused(OneTensor(dtype + R"("shape":[-2],)" + offsets), "shape", "[-2]");
  ExpectRefused(OneTensor(dtype + R"("shape":[2.0],)" + offsets), "shape", "[2.0]");
  ExpectRefused(OneTensor(dtype + R"("shape":[3],)" + offsets), "data_offsets", "[0,8]");
  // The product wraps round to 2.
  ExpectRefused(OneTensor(dtype + R"("shape":[9223372036854775809,2],)" + offsets), "shape",
                "9223372036854775809");
  ExpectRefused(OneTensor(dtype + R"("shape":[4294967296,0,4294967296,4294967296],)" + offsets),
                "shape", "4294967296");
  ExpectRefused(OneTensor(dtype + shape + R"("data_offsets":[8,0])"), "data_offsets", "[8,0]");
  ExpectRefused(OneTensor(dtype + shape + R"("data_offsets":[0,16])"), "data_offsets", "[0,16]");
  ExpectRefused(OneTensor(dtype + shape + R"("data_offsets":[0])"), "data_offsets", "[0]");
  ExpectRefused(OneTensor(dtype + shape + R"("data_offsets":[-8,0])"), "data_offsets", "[-8,0]");
}

TEST(SafetensorsTest, OverlapsAndHolesAreRefused) {
  const auto two = [](int begin) {
    const std::string a = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)";
    const std::string b = R"("b":{"dtype":"U8","shape":[4],"data_offsets":[)";
    return SafetensorsFile(a + b + std::to_string(begin) + "," + std::to_string(begin + 4) + "]}}",
                           "12345678");
  };
  EXPECT_EQ(ParseSafetensors(AsBytes(two(4)), "f").size(), 2u);
  ExpectRefused(two(3), "tensor 'b'", "begins at 3");
  ExpectRefused(two(0), "tensor '", "begins at 0");
  ExpectRefused(OneTensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,8])"), "tensor 'a'",
                "begins at 4");
}

TEST(SafetensorsTest, LongNamesAreShortenedBetweenCharacters) {
  std::string name;
  for (int i = 0; i < 100; ++i) name += "é";
  const std::string file = SafetensorsFile(std::string("{\"x") + name + "\":7}", "");
  const CheckpointError error = ErrorOf([&] { ParseSafetensors(AsBytes(file), "f"); });
  EXPECT_NE(error.field().find("é...'"), std::string::npos) << error.field();
}

TEST(SafetensorsTest, RandomDamageIsRefusedOrStaysWithinTheFile) {
  const std::string whole = SafetensorsBytes({Float32Tensor("model.a", {2, 3}, {1, 2, 3, 4, 5, 6}),
                                              BFloat16Tensor("model.b", {4}, {1, 2, 3, 4})});
  const std::size_t header_end = whole.size() - 32;
  const std::string alphabet = "0123456789{}[]\",:-.eE \0\xff";
  TinyRandom random(11);
  for (int example = 0; example < testing::NumExamples(2000, 200000); ++example) {
    std::string damaged = whole;
    for (int edit = random.Below(4); edit >= 0; --edit) {
      const std::size_t at = random.Below(static_cast<int>(header_end));
      const char replacement = alphabet[random.Below(static_cast<int>(alphabet.size()))];
      if (random.Below(4) == 0) {
        damaged.insert(at, 1, replacement);
      } else {
        damaged[at] = replacement;
      }
    }
    try {
      for (const auto& [name, entry] : ParseSafetensors(AsBytes(damaged), "f")) {
        std::uint64_t num_bytes = SizeOf(entry.dtype);
        for (std::int64_t extent : entry.shape) num_bytes *= extent;
        ASSERT_LE(entry.end, damaged.size());
        ASSERT_EQ(entry.end - entry.begin, num_bytes) << damaged;
      }
    } catch (const CheckpointError&) {
    }
  }
}

}  // namespace
}  // namespace forerun
