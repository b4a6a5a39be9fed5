// Loads a model directory, generates with and without speculation, cancels, and reads metrics, by
// the public header.
#include <forerun/engine.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

namespace {

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

std::map<forerun::RequestId, std::vector<forerun::TokenId>> Generate(
    const char* model, const forerun::SpeculativeMethod& method) {
  forerun::EngineOptions options;
  options.model = model;
  options.max_model_len = 128;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 64;
  options.kv_cache_memory_bytes = 64 << 20;
  options.speculative.method = method;
  const auto engine = forerun::Engine::Create(options);

  forerun::SamplingParams params;
  params.temperature = 0;
  params.max_tokens = 40;
  params.ignore_eos = true;
  engine->Submit(std::vector<forerun::TokenId>{1, 2, 3, 1, 2, 3, 1, 2}, params);
  params.temperature = 0.8;
  params.seed = 7;
  engine->Submit(std::vector<forerun::TokenId>{5, 6, 7}, params);
  const forerun::RequestId unwanted = engine->Submit(std::vector<forerun::TokenId>{9}, params);
  Require(engine->Cancel(unwanted), "an unfinished request can be cancelled");

  std::map<forerun::RequestId, std::vector<forerun::TokenId>> outputs;
  while (engine->HasUnfinished()) {
    for (const forerun::RequestUpdate& update : engine->Step()) {
      auto& output = outputs[update.id];
      output.insert(output.end(), update.new_tokens.begin(), update.new_tokens.end());
    }
  }
  Require(outputs[unwanted].empty(), "a cancelled request emits nothing");
  outputs.erase(unwanted);
  const forerun::EngineMetrics metrics = engine->metrics();
  Require(metrics.num_generated_tokens == 80, "every token is counted");
  Require(metrics.num_held_blocks == 0, "every block is given back");
  return outputs;
}

}  // namespace

int main(int argc, char** argv) {
  Require(argc == 2, "usage: embed MODEL_DIRECTORY");
  const auto plain = Generate(argv[1], {});
  Require(plain == Generate(argv[1], forerun::NgramOptions()), "ngram changes nothing");
  Require(plain == Generate(argv[1], forerun::SuffixOptions()), "suffix changes nothing");
  try {
    forerun::EngineOptions options;
    options.model = "/nowhere";
    forerun::Engine::Create(options);
    Require(false, "a missing model is an error");
  } catch (const forerun::InvalidArgument& error) {
    std::printf("%s\n", error.what());
  }
  std::printf("embedding works\n");
  return 0;
}
