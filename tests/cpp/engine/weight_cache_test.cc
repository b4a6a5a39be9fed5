// The directory of packed weights: keys, room, and engines that start from it.
#include "cpp/engine/weight_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>

#include "forerun/engine.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

namespace fs = std::filesystem;

class WeightCacheTest : public ::testing::Test {
 protected:
  WeightCacheTest() {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~WeightCacheTest() override { fs::remove_all(folder_); }

  std::string File(const std::string& name, int num_bytes, int age_in_hours) {
    const fs::path path = folder_ / name;
    std::ofstream(path) << std::string(num_bytes, 'x');
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(age_in_hours));
    return path.string();
  }
  static std::string KeyOf(const std::string& directory, const std::string& dtype = "auto",
                           const QuantizationOptions& quantization = {}) {
    return WeightCacheKey(ModelFiles(directory, dtype, quantization), "an isa");
  }

  const fs::path folder_ =
      fs::path(::testing::TempDir()) / ("weight_cache_" + std::to_string(::getpid()));
};

TEST_F(WeightCacheTest, RoomIsMadeByRemovingTheOldest) {
  const std::string old = File("a.packed", 100, 3), older = File("b.packed", 100, 5);
  const std::string recent = File("c.packed", 100, 1), other = File("other.txt", 1000, 9);
  EXPECT_EQ(MakeRoom(folder_.string(), 100, 400), "");
  EXPECT_TRUE(fs::exists(older));
  EXPECT_EQ(MakeRoom(folder_.string(), 101, 300), "");
  EXPECT_FALSE(fs::exists(older));
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(recent));
  EXPECT_TRUE(fs::exists(other));
  EXPECT_NE(MakeRoom(folder_.string(), 301, 300), "");
  EXPECT_TRUE(fs::exists(recent));
}

TEST_F(WeightCacheTest, WhatDeadWritersLeftIsRemoved) {
  const std::string dead = File("a.packed.a1B2c3", 100, 2), alive = File("a.packed.d1B2c3", 100, 0);
  EXPECT_EQ(MakeRoom(folder_.string(), 1, 1000), "");
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_TRUE(fs::exists(alive));
}

TEST_F(WeightCacheTest, TheKeyChangesWithAllThatThePackedBytesDependOn) {
  const ModelDirectory model;
  const std::string config = TinyConfig("llama");
  const ModelSpec spec = WriteTinyModel(model, config);
  const std::string key = KeyOf(model.path());
  EXPECT_EQ(KeyOf(model.path()), key);
  std::set<std::string> keys = {key, KeyOf(model.path(), "bfloat16")};
  for (const char* name : {"int8", "int4"}) {
    keys.insert(KeyOf(model.path(), "auto", {.linear = name}));
    keys.insert(KeyOf(model.path(), "auto", {.embedding = name}));
    keys.insert(KeyOf(model.path(), "auto", {.head = name}));
    keys.insert(KeyOf(model.path(), "auto", {name, name, name}));
  }
  EXPECT_EQ(keys.size(), 10);
  const fs::path weights = fs::path(model.path()) / "model.safetensors";
  const auto time = fs::last_write_time(weights);
  // Another time, other bytes of the same size and time, another config.
  fs::last_write_time(weights, time + std::chrono::seconds(1));
  keys.insert(KeyOf(model.path()));
  model.WriteTensors(TinyTensors(spec, 2));
  fs::last_write_time(weights, time);
  keys.insert(KeyOf(model.path()));
  model.Write("config.json", config + " ");
  keys.insert(KeyOf(model.path()));
  EXPECT_EQ(keys.size(), 13);
  std::set<std::string> paths;
  for (const std::string& each : keys) paths.insert(WeightCachePath("x", each));
  EXPECT_EQ(paths.size(), 13);
}

struct Generation {
  std::string outcome;
  std::vector<TokenId> tokens;
};

Generation Generate(const EngineOptions& options) {
  const auto engine = Engine::Create(options);
  SamplingParams params;
  params.temperature = 0.9;
  params.seed = 3;
  params.max_tokens = 40;
  params.ignore_eos = true;
  engine->Submit(std::vector<TokenId>{5, 9, 4, 7}, params, {}, {});
  Generation run = {engine->limits().weight_cache, {}};
  while (engine->HasUnfinished()) {
    for (const RequestUpdate& update : engine->Step()) {
      run.tokens.insert(run.tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
    }
  }
  return run;
}

TEST_F(WeightCacheTest, EnginesThatStartFromItGiveTheSameTokens) {
  const ModelDirectory model;
  WriteTinyModel(model, TinyConfig("qwen3"));
  for (const QuantizationOptions& quantization :
       {QuantizationOptions{}, {"int8", "int8", "int8"}, {.linear = "int4"}}) {
    EngineOptions options;
    options.model = model.path();
    options.quantization = quantization;
    options.num_threads = 2;
    const Generation plain = Generate(options);
    EXPECT_EQ(plain.outcome, "off");
    options.weight_cache.directory = folder_.string();
    for (const char* outcome : {"written", "read", "read"}) {
      const Generation run = Generate(options);
      EXPECT_EQ(run.outcome, outcome);
      EXPECT_EQ(run.tokens, plain.tokens);
    }
  }
}

TEST_F(WeightCacheTest, ACacheThatCannotBeWrittenFailsNoLoad) {
  const ModelDirectory model;
  WriteTinyModel(model, TinyConfig("llama"));
  EngineOptions options;
  options.model = model.path();
  options.weight_cache.directory = "/dev/null/cache";
  EXPECT_TRUE(Generate(options).outcome.starts_with("not written: "));
}

}  // namespace
}  // namespace forerun
