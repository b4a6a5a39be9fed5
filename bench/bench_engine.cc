// The model and the engine on a real model directory.
//
//   bench_engine MODEL_DIRECTORY [--smoke] [--threads N] [--rounds N] [--dtype NAME]
//                [--quantization NAME] [--head NAME]
//
// Prints, as medians of interleaved rounds in one process:
//   forward     a forward pass by number of rows at two context lengths, as a ratio to one row
//   prefill     tokens/s of a 512-token prompt beside what the products alone reach at 64 rows
//   decode      tokens/s of one request, and the share of the measured read bandwidth
//   verify      verification and sampling at temperature 1, as a share of a step with as many rows
//   overhead    the part of a step outside the model, at batch 1 and 32
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>

#include "bench/model_settings.h"
#include "cpp/model/model_files.h"
#include "cpp/model/transformer.h"
#include "cpp/model/weights.h"
#include "cpp/ops/cpu/cpu_backend.h"
#include "cpp/util/read_bandwidth.h"
#include "cpp/verify/verify.h"
#include "forerun/engine.h"

namespace forerun::bench {
namespace {

struct Settings : ModelSettings {
  int num_decoded = 128;
  int num_prefill = 512;
};

constexpr int kBlockSize = 16;
constexpr int kMaxContext = 1024;
constexpr int kMaxLogits = 80;  // rows of a step of 16 requests with 5 rows each
constexpr int kRowCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 32};

// Such as "int4 62 MB, int8 27 MB".
std::string FormatsOf(const Transformer& model) {
  std::string text;
  for (const auto& [format, num_bytes] : model.weights().BytesByFormat()) {
    if (!text.empty()) text += ", ";
    text += std::string(Name(format)) + " " + std::to_string(num_bytes / 1'000'000) + " MB";
  }
  return text;
}

// One sequence on a transformer of its own.
class ModelBench {
 public:
  explicit ModelBench(const Settings& settings)
      : backend_(settings.num_threads), reader_(backend_.team(), settings.read_bytes) {
    ModelFiles files(settings.model, settings.dtype, settings.quantization);
    const int num_blocks = kMaxContext / kBlockSize;
    const int max_len = std::min(kMaxContext, files.spec.max_position);
    const double begin = Now();
    model_ = files.Load(
        ops_, {settings.num_prefill, max_len, kBlockSize, num_blocks, kMaxLogits, files.dtype});
    std::printf("%s, %d threads, %s; packed in %.2f s\n", ops_.isa().c_str(),
                backend_.team().num_threads(), FormatsOf(*model_).c_str(), Now() - begin);
    for (const LayerWeights& layer : model_->weights().layers) {
      for (const auto* matrix :
           {&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down}) {
        matrices_.push_back(matrix->get());
      }
    }
    block_table_.resize(num_blocks);
    std::iota(block_table_.begin(), block_table_.end(), 0);
    for (int i = 0; i < kMaxContext; ++i) tokens_.push_back((i * 7919) % files.spec.vocab_size);
  }

  double Forward(int num_rows, int num_context, int num_logits) {
    const SequenceRows sequence{0, num_rows, num_context, block_table_};
    std::vector<std::int32_t> logits_rows(num_logits);
    std::iota(logits_rows.begin(), logits_rows.end(), num_rows - num_logits);
    const double begin = Now();
    model_->Forward({std::span(tokens_).first(num_rows), {&sequence, 1}, logits_rows});
    return Now() - begin;
  }

  // A step of as many requests, each at num_context with its last token and a draft. The logits
  // stay valid until the next pass.
  ConstRows ForwardBatch(int num_requests, int num_rows, int num_context) {
    const int num_blocks = (num_context + num_rows + kBlockSize - 1) / kBlockSize;
    std::vector<SequenceRows> sequences;
    for (int i = 0; i < num_requests; ++i) {
      const auto blocks = std::span(block_table_).subspan(i * num_blocks, num_blocks);
      sequences.push_back({i * num_rows, num_rows, num_context, blocks});
    }
    std::vector<std::int32_t> logits_rows(num_requests * num_rows);
    std::iota(logits_rows.begin(), logits_rows.end(), 0);
    return model_->Forward({std::span(tokens_).first(logits_rows.size()), sequences, logits_rows});
  }

  // Seconds per token of all the layers' products on 64 rows, and nothing else.
  double ProductSecondsPerToken() {
    constexpr int kRows = 64;
    int most = 0;
    for (const PackedMatrix* matrix : matrices_) {
      most = std::max({most, matrix->num_inputs(), matrix->num_outputs()});
    }
    x_.resize(static_cast<std::size_t>(kRows) * most, 0.01f);
    y_.resize(static_cast<std::size_t>(kRows) * most);
    const double begin = Now();
    for (const PackedMatrix* matrix : matrices_) {
      ops_.MatMul(ConstRows(x_.data(), kRows, matrix->num_inputs()), *matrix, nullptr, false,
                  Rows(y_.data(), kRows, matrix->num_outputs()));
    }
    return (Now() - begin) / kRows;
  }

  double ReadSecondsPerByte() { return reader_.SecondsPerByte(); }
  std::int64_t bytes_per_token() const { return model_->num_bytes_per_token(); }

 private:
  CpuBackend backend_;
  Ops& ops_ = backend_.ops();
  MemoryReader reader_;
  std::vector<const PackedMatrix*> matrices_;
  std::unique_ptr<Transformer> model_;
  std::vector<BlockId> block_table_;
  std::vector<TokenId> tokens_;
  std::vector<float> x_, y_;
};

void BenchForward(ModelBench& model, const Settings& settings) {
  for (int num_context : {50, 600}) {
    model.Forward(settings.num_prefill, 0, 1);
    std::vector<double> read;
    std::vector<std::vector<double>> seconds(std::size(kRowCounts));
    for (int round = 0; round < settings.num_rounds; ++round) {
      read.push_back(model.ReadSecondsPerByte());
      for (std::size_t i = 0; i < std::size(kRowCounts); ++i) {
        seconds[i].push_back(model.Forward(kRowCounts[i], num_context, kRowCounts[i]));
      }
    }
    const double one = Median(seconds[0]);
    const double roofline = Median(read) * static_cast<double>(model.bytes_per_token());
    std::printf("\nforward at a context of %d; read %.1f GB/s, one row at %.0f%% of it\n",
                num_context, 1e-9 / Median(read), 100 * roofline / one);
    std::printf("%6s %9s %7s\n", "rows", "ms", "ratio");
    for (std::size_t i = 0; i < std::size(kRowCounts); ++i) {
      const double time = Median(seconds[i]);
      std::printf("%6d %9.2f %7.2f\n", kRowCounts[i], 1e3 * time, time / one);
    }
  }
}

// Verifies drafts that are accepted to their ends, the most that verification ever costs.
double VerifySeconds(ConstRows logits, int num_rows, AcceptanceMethod method,
                     SamplerScratch& scratch) {
  double seconds = 0;
  Verdict verdict;
  for (int begin = 0; begin < logits.rows; begin += num_rows) {
    const RowLogits rows = {logits.row(begin), logits.cols, logits.stride};
    SamplingRule rule;
    rule.seed = begin;
    DraftTree draft;
    for (int i = 0; i + 1 < num_rows; ++i) {
      draft.AppendToChain(SampleToken(rows.row(i), rule, i, scratch), 1.0f);
    }
    rule.acceptance_method = method;
    const double start = Now();
    Verify(draft, rows, rule, 0, scratch, verdict);
    seconds += Now() - start;
  }
  return seconds;
}

void BenchVerification(ModelBench& model, const Settings& settings) {
  SamplerScratch scratch;
  std::printf("\nverification and sampling at temperature 1, share of the step\n");
  std::printf("%18s %9s %9s %10s %7s\n", "", "model ms", "coupled", "rejection", "block");
  for (const auto& [num_requests, num_rows] :
       {std::pair(1, 1), std::pair(1, 5), std::pair(16, 5)}) {
    std::vector<double> forward, shares[3];
    for (int round = 0; round < settings.num_rounds; ++round) {
      const double begin = Now();
      const ConstRows logits = model.ForwardBatch(num_requests, num_rows, /*num_context=*/50);
      forward.push_back(Now() - begin);
      for (int i = 0; i < 3; ++i) {
        const AcceptanceMethod methods[] = {AcceptanceMethod::kCoupled,
                                            AcceptanceMethod::kRejection, AcceptanceMethod::kBlock};
        const double seconds = VerifySeconds(logits, num_rows, methods[i], scratch);
        shares[i].push_back(seconds / (seconds + forward.back()));
      }
    }
    std::printf("%3d request%s x %d rows %9.2f %8.2f%% %9.2f%% %6.2f%%\n", num_requests,
                num_requests == 1 ? " " : "s", num_rows, 1e3 * Median(forward),
                100 * Median(shares[0]), 100 * Median(shares[1]), 100 * Median(shares[2]));
  }
}

void BenchPrefill(ModelBench& model, const Settings& settings) {
  std::vector<double> prefill, product;
  for (int round = 0; round < settings.num_rounds; ++round) {
    prefill.push_back(model.Forward(settings.num_prefill, 0, 1) / settings.num_prefill);
    product.push_back(model.ProductSecondsPerToken());
  }
  std::printf(
      "\nprefill of %d: %.0f tokens/s; products alone at 64 rows %.0f tokens/s; ratio %.2f\n",
      settings.num_prefill, 1 / Median(prefill), 1 / Median(product),
      Median(product) / Median(prefill));
}

struct DecodeResult {
  double tokens_per_second = 0;
  double outside_share = 0;  // of step time, outside the model
};

DecodeResult Decode(Engine& engine, int num_requests, int num_decoded) {
  SamplingParams params;
  params.temperature = 0;
  params.ignore_eos = true;
  params.max_tokens = num_decoded;
  for (int i = 0; i < num_requests; ++i) {
    std::vector<TokenId> prompt;
    for (int j = 0; j < 40; ++j) prompt.push_back((i * 31 + j * 17) % engine.limits().vocab_size);
    engine.Submit(prompt, params);
  }
  engine.Step();
  const EngineMetrics before = engine.metrics();
  const double begin = Now();
  while (engine.HasUnfinished()) engine.Step();
  const double seconds = Now() - begin;
  const EngineMetrics after = engine.metrics();
  const double model = after.model_seconds - before.model_seconds;
  return {(after.num_generated_tokens - before.num_generated_tokens) / seconds,
          1 - model / seconds};
}

void BenchEngine(const Settings& settings) {
  ThreadTeam team(settings.num_threads);
  MemoryReader reader(team, settings.read_bytes);
  EngineOptions options;
  options.model = settings.model;
  options.dtype = settings.dtype;
  options.quantization = settings.quantization;
  options.num_threads = settings.num_threads;
  options.max_model_len = 512;
  const double begin = Now();
  const auto plain = Engine::Create(options);
  std::printf("\nengine created in %.2f s\n", Now() - begin);
  options.speculative.method = SuffixOptions();
  const auto suffix = Engine::Create(options);
  for (int num_requests : {1, 32}) {
    std::vector<double> speed, share, read, suffix_share;
    for (int round = 0; round < (num_requests == 1 ? settings.num_rounds : 2); ++round) {
      // Once for nothing: until the engines' threads sleep and the reader's are awake.
      reader.SecondsPerByte();
      read.push_back(reader.SecondsPerByte());
      const DecodeResult result = Decode(*plain, num_requests, settings.num_decoded);
      speed.push_back(result.tokens_per_second);
      share.push_back(result.outside_share);
      suffix_share.push_back(Decode(*suffix, num_requests, settings.num_decoded).outside_share);
    }
    const double bytes = static_cast<double>(plain->limits().num_bytes_per_token);
    std::printf("decode, batch %2d: %.1f tokens/s", num_requests, Median(speed));
    if (num_requests == 1) {
      std::printf(", %.0f%% of %.1f GB/s", 100 * Median(speed) * bytes * Median(read),
                  1e-9 / Median(read));
    }
    std::printf("; outside the model %.2f%% of a step, %.2f%% with suffix drafts\n",
                100 * Median(share), 100 * Median(suffix_share));
  }
}

int Main(int argc, char** argv) {
  Settings settings;
  bool is_valid = true;
  for (int i = 1; i < argc; ++i) is_valid = settings.Take(argc, argv, i) && is_valid;
  if (!is_valid || settings.model.empty()) {
    std::fprintf(stderr, "usage: bench_engine %s\n", kModelUsage);
    return 2;
  }
  if (settings.is_smoke) settings.num_decoded = 8;
  {
    ModelBench model(settings);
    BenchForward(model, settings);
    BenchVerification(model, settings);
    BenchPrefill(model, settings);
  }
  BenchEngine(settings);
  return 0;
}

}  // namespace
}  // namespace forerun::bench

int main(int argc, char** argv) {
  try {
    return forerun::bench::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
