// Which files of a directory are the model, whatever else is there.
#include "cpp/model/checkpoint/weight_files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "cpp/model/checkpoint/json_depth.h"
#include "forerun/error.h"
#include "tests/cpp/testing/model_directory.h"

namespace forerun {
namespace {

using Names = std::vector<std::string>;

Names Find(const ModelDirectory& directory) { return FindWeightFiles(directory.path()).names; }

TEST(WeightFilesTest, TheFirstUsualNameCounts) {
  ModelDirectory directory;
  EXPECT_EQ(Find(directory), Names());
  directory.Write("optimizer.bin", "");
  directory.Write("head.pt", "");
  EXPECT_EQ(Find(directory), (Names{"head.pt", "optimizer.bin"}));
  EXPECT_TRUE(FindWeightFiles(directory.path()).are_pickled);
  directory.Write("b.safetensors", "");
  directory.Write("a.safetensors", "");
  EXPECT_EQ(Find(directory), (Names{"a.safetensors", "b.safetensors"}));
  EXPECT_FALSE(FindWeightFiles(directory.path()).are_pickled);
  directory.Write("pytorch_model.bin.index.json",
                  R"({"weight_map": {"x": "1.bin", "y": "0.bin"}})");
  EXPECT_EQ(Find(directory), (Names{"0.bin", "1.bin"}));
  EXPECT_EQ(FindWeightFiles(directory.path()).file_of_tensor.at("x"), "1.bin");
  directory.Write("pytorch_model.bin", "");
  EXPECT_EQ(Find(directory), Names{"pytorch_model.bin"});
  directory.Write("model.safetensors.index.json", R"({"weight_map": {"x": "s", "y": "s"}})");
  EXPECT_EQ(Find(directory), Names{"s"});
  directory.Write("model.safetensors", "");
  EXPECT_EQ(Find(directory), Names{"model.safetensors"});
  EXPECT_EQ(FindWeightFiles(directory.path()).index_name, "");
}

TEST(WeightFilesTest, ALinkToNowhereIsNotPassedOver) {
  ModelDirectory directory;
  directory.Write("adapter.safetensors", "");
  std::filesystem::create_symlink("gone",
                                  std::filesystem::path(directory.path()) / "model.safetensors");
  EXPECT_EQ(Find(directory), Names{"model.safetensors"});
}

TEST(WeightFilesTest, DamagedIndexesAndNoDirectoryAreRefused) {
  ModelDirectory directory;
  EXPECT_THROW(FindWeightFiles(directory.path() + "/nowhere"), CheckpointError);
  const std::string deep = std::string(kMaxJsonDepth, '[') + std::string(kMaxJsonDepth, ']');
  for (const std::string& text :
       {std::string("{"), std::string(R"({"weight_map": {}})"),
        std::string(R"({"weight_map": {"x": ".."}})"), R"({"weight_map": )" + deep + "}"}) {
    directory.Write("model.safetensors.index.json", text);
    EXPECT_THROW(FindWeightFiles(directory.path()), CheckpointError) << text;
  }
}

}  // namespace
}  // namespace forerun
