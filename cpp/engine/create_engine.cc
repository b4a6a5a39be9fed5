#include "cpp/engine/create_engine.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "cpp/draft/draft_limits.h"
#include "cpp/draft/formats/resolve_drafter.h"
#include "cpp/draft/make_drafter.h"
#include "cpp/draft/neural/model_drafter.h"
#include "cpp/engine/engine_core.h"
#include "cpp/engine/memory_plan.h"
#include "cpp/engine/weight_cache.h"
#include "cpp/model/model_files.h"
#include "cpp/model/transformer.h"
#include "cpp/ops/cpu/cpu_backend.h"
#include "cpp/ops/cuda_library.h"
#include "cpp/util/machine.h"
#include "cpp/verify/uploading_verifier.h"
#include "forerun/engine.h"

namespace forerun {
namespace {

EngineConfig MakeConfig(const EngineOptions& options, const MemoryPlan& memory,
                        const ModelSpec& spec) {
  EngineConfig config;
  config.max_model_len = memory.max_model_len;
  config.num_blocks = memory.num_blocks;
  config.block_size = options.block_size;
  config.max_num_seqs = options.max_num_seqs;
  config.max_waiting_requests = options.max_waiting_requests;
  config.max_num_batched_tokens = options.max_num_batched_tokens;
  config.enable_prefix_caching = options.enable_prefix_caching;
  config.scheduling_policy = options.scheduling_policy;
  config.seed = options.seed;
  config.num_speculative_tokens = MaxDraftTokens(options.speculative);
  config.adaptive = options.speculative.adaptive;
  config.acceptance_method = options.speculative.acceptance_method;
  config.eos_token_ids = spec.eos_token_ids;
  config.record_draft_steps = options.record_draft_steps;
  config.check_invariants = options.check_invariants;
  return config;
}

// What the memory is for.
struct Sizes {
  Sizes(const EngineOptions& options, ModelFiles& files,
        const std::optional<ModelDrafterSource>& source)
      : kv_dtype(files.KvDType(options.kv_cache_dtype)) {
    const ModelSpec& spec = files.spec;
    needs.block = MakeKvLayout(spec, kv_dtype, options.block_size).block_bytes();
    needs.row = ScratchBytesPerRow(spec);
    needs.weights = files.EstimateWeightBytes();
    if (source) {
      needs.block += source->block_bytes(kv_dtype, options.block_size);
      num_level_rows = options.max_num_seqs * source->num_level_rows();
    }
    const int num_logits_rows = MakeConfig(options, {}, spec).max_logits_rows() + num_level_rows;
    needs.logits = num_logits_rows * std::int64_t{sizeof(float)} * spec.vocab_size;
    num_rows = std::max(options.max_num_batched_tokens, num_level_rows);
  }

  DType kv_dtype;
  int num_level_rows = 0;  // of a level of all drafts
  int num_rows = 0;        // of the largest forward pass
  MemoryNeeds needs;
};

// Starts the trace that the environment asks for, if any. Engines of one process do not share a
// file: after trace.json come trace.2.json, trace.3.json and so on.
void StartTraceFromEnvironment(EngineCore& core) {
  const char* value = std::getenv("FORERUN_TRACE");
  if (value == nullptr || *value == '\0') return;
  static std::mutex mutex;
  static std::map<std::string, int> num_traces;  // of each path
  const std::lock_guard lock(mutex);
  const int number = num_traces[value] + 1;
  std::filesystem::path path(value);
  if (number > 1) {
    path.replace_filename(path.stem().string() + "." + std::to_string(number) +
                          path.extension().string());
  }
  core.StartTrace(path.string(), "FORERUN_TRACE");
  num_traces[value] = number;
}

// Where models run and where logits are verified.
struct Devices {
  explicit Devices(const EngineOptions& options) {
    if (options.device == "cuda") {
      backend = OpenCudaLibrary().open_gpu();
      return;
    }
    auto host = std::make_unique<CpuBackend>(options.num_threads);
    cpu = host.get();
    backend = std::move(host);
    if (options.verify_device == "cuda") verifying_gpu = OpenCudaLibrary().open_gpu();
  }

  // Of logits that the backend computes: there, or copied to the GPU that verifies.
  std::unique_ptr<Verifier> MakeVerifier(const VerifierLimits& limits) const {
    if (verifying_gpu == nullptr) return backend->MakeVerifier(limits);
    return std::make_unique<UploadingVerifier>(verifying_gpu->MakeVerifier(limits),
                                               verifying_gpu->memory(), limits);
  }

  std::unique_ptr<Backend> backend;
  CpuBackend* cpu = nullptr;              // the backend, if it is the CPU
  std::unique_ptr<Device> verifying_gpu;  // null: the backend verifies
};

// Owns everything an engine is made of; members below use those above.
class NativeEngine : public Engine {
 public:
  NativeEngine(const EngineOptions& options, ModelFiles& files, DraftRecorder* recorder,
               Devices devices)
      : devices_(std::move(devices)) {
    Backend& backend = *devices_.backend;
    const MemorySize size_before = backend.memory_size();
    std::optional<ModelDrafterSource> source;
    if (FindModelOptions(options.speculative.method) != nullptr) {
      source.emplace(options.speculative, files.spec, options.model, options.quantization);
    }
    const Sizes sizes(options, files, source);
    const int model_max_len = files.spec.max_position;
    const bool is_on_cpu = devices_.cpu != nullptr;
    MemoryPlan memory;
    if (is_on_cpu) {
      memory = PlanMemory(options, model_max_len, sizes.num_rows, sizes.needs, size_before.free);
    } else {
      memory.max_model_len = MostModelLen(options, model_max_len, sizes.needs, size_before.free);
      CheckGpuBuffers(options, sizes.num_rows, sizes.needs, size_before);
    }
    EngineConfig config = MakeConfig(options, memory, files.spec);
    TransformerLimits limits = {options.max_num_batched_tokens,
                                memory.max_model_len,
                                options.block_size,
                                memory.num_blocks,
                                config.max_logits_rows(),
                                sizes.kv_dtype,
                                options.max_num_seqs,
                                !options.enforce_eager};
    const FeatureSpec features = source ? source->features() : FeatureSpec();
    const auto load = [&] { transformer_ = files.Load(backend.ops(), limits, features); };
    if (is_on_cpu) {
      limits_.weight_cache = LoadWithCache(options.weight_cache, files, devices_.cpu->ops(), load);
    } else {
      load();
      limits_.weight_cache = "off";
    }
    if (source) {
      limits.max_rows = sizes.num_rows;
      limits.max_logits_rows = sizes.num_level_rows;
      drafter_ = source->Load(*transformer_, backend, limits, files.dtype, recorder);
    } else {
      drafter_ = MakeDrafter(options.speculative);
    }
    auto verifier = devices_.MakeVerifier(config.verifier_limits(transformer_->vocab_size()));
    if (!is_on_cpu) {
      memory = ReserveGpuBlocks(options, model_max_len, sizes, size_before);
      if (source) source->ReserveBlocks(memory.num_blocks);
      config = MakeConfig(options, memory, files.spec);
    }
    core_ = std::make_unique<EngineCore>(config, *transformer_, std::move(verifier), drafter_.get(),
                                         backend.MakePassTimer());
    StartTraceFromEnvironment(*core_);
    FillLimits(options, memory);
    limits_.model_max_len = model_max_len;
    limits_.eos_token_ids = config.eos_token_ids;
    limits_.dtype = Name(files.dtype);
    limits_.kv_cache_dtype = Name(sizes.kv_dtype);
  }

  void SetTokenBytes(std::vector<std::string> token_bytes,
                     std::vector<TokenId> special_tokens) override {
    core_->SetTokenBytes(std::move(token_bytes), special_tokens);
  }
  void AddEosTokens(const std::vector<TokenId>& tokens) override {
    core_->AddEosTokens(tokens);
    limits_.eos_token_ids = core_->eos_token_ids();
  }
  RequestId Submit(std::span<const TokenId> prompt, const SamplingParams& params,
                   RequestHooks hooks, const SubmitOptions& options) override {
    return core_->Submit(prompt, params, std::move(hooks), options);
  }
  void CheckRoom(int num_requests) const override { core_->CheckRoom(num_requests); }
  bool Cancel(RequestId id) override { return core_->Cancel(id); }
  RequestId CancelStarted() noexcept override { return core_->CancelStarted(); }
  bool HasUnfinished() const override { return core_->HasUnfinished(); }
  std::span<const RequestUpdate> Step() override { return core_->Step(); }
  void ResetCaches() override { core_->ResetCaches(); }
  bool RestoreOutputs(std::span<const PastOutput> outputs, bool is_last) override {
    return core_->RestoreOutputs(outputs, is_last);
  }
  bool ResetPrefixCache() override { return core_->ResetPrefixCache(); }
  bool StartTrace(const std::string& path) override { return core_->StartTrace(path); }
  void StopTrace() override { core_->StopTrace(); }
  EngineMetrics metrics() const override { return core_->metrics(); }
  const ModelLimits& limits() const override { return limits_; }

 private:
  // With weights and buffers in the GPU's memory, of which size_before was free.
  MemoryPlan ReserveGpuBlocks(const EngineOptions& options, int model_max_len, const Sizes& sizes,
                              const MemorySize& size_before) {
    MemorySize size = devices_.backend->memory_size();
    size.free -= transformer_->num_padding_blocks() * sizes.needs.block;
    const std::int64_t used_bytes = std::max<std::int64_t>(0, size_before.free - size.free);
    const MemoryPlan memory =
        PlanGpuMemory(options, model_max_len, sizes.needs.block, used_bytes, size);
    transformer_->ReserveBlocks(memory.num_blocks);
    return memory;
  }

  // From the loaded model.
  void FillLimits(const EngineOptions& options, const MemoryPlan& memory) {
    const ModelWeights& weights = transformer_->weights();
    limits_.vocab_size = transformer_->vocab_size();
    limits_.max_model_len = memory.max_model_len;
    limits_.num_kv_blocks = memory.num_blocks;
    limits_.block_size = options.block_size;
    limits_.num_weight_bytes = transformer_->num_weight_bytes();
    for (const auto& [format, num_bytes] : weights.BytesByFormat()) {
      limits_.weight_bytes[Name(format)] = num_bytes;
    }
    limits_.num_unpacked_layers = weights.num_unpacked;
    limits_.num_bytes_per_token = transformer_->num_bytes_per_token();
    limits_.isa = devices_.backend->ops().isa();
    limits_.num_threads = devices_.cpu != nullptr   ? devices_.cpu->team().num_threads()
                          : options.num_threads > 0 ? options.num_threads
                                                    : NumUsableCores();
  }

  Devices devices_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<Drafter> drafter_;
  std::unique_ptr<EngineCore> core_;
  ModelLimits limits_;
};

}  // namespace

std::unique_ptr<Engine> Engine::Create(const EngineOptions& options) {
  return CreateEngine(options, /*recorder=*/nullptr);
}

std::unique_ptr<Engine> CreateEngine(const EngineOptions& given, DraftRecorder* recorder) {
  CheckEngineOptions(given);
  Devices devices(given);
  ModelFiles files(given.model, given.dtype, given.quantization);
  EngineOptions options = given;
  options.speculative = ResolveDrafter(given.speculative, given.model);
  return std::make_unique<NativeEngine>(options, files, recorder, std::move(devices));
}

}  // namespace forerun
