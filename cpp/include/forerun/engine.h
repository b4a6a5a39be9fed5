// Generates text from a causal language model, speculatively, without changing it.
//
//   forerun::EngineOptions options;
//   options.model = "/models/SmolLM2-135M-Instruct";
//   options.speculative.method = forerun::SuffixOptions();
//   auto engine = forerun::Engine::Create(options);
//   forerun::RequestId id = engine->Submit(prompt, params);
//   while (engine->HasUnfinished()) {
//     for (const forerun::RequestUpdate& update : engine->Step()) { ... update.new_tokens ... }
//   }
//
// One thread at a time may be in Step, SetTokenBytes, AddEosTokens, ResetCaches, StartTrace or
// StopTrace: a second one, and a hook that calls them, gets EngineBusy. The others may be called
// from any thread at any time.
#ifndef FORERUN_ENGINE_H_
#define FORERUN_ENGINE_H_

#include <chrono>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "forerun/error.h"
#include "forerun/metrics.h"
#include "forerun/options.h"
#include "forerun/past_output.h"
#include "forerun/prediction.h"
#include "forerun/request_hooks.h"
#include "forerun/sampling_params.h"
#include "forerun/types.h"

namespace forerun {

// The log-probabilities of some tokens. Each has an entry for itself, and then one for each of the
// most probable tokens by rank, or of SamplingParams::logprob_token_ids.
struct TokenLogprobs {
  std::span<const TokenLogprob> entries = {};
  int entries_per_token = 1;

  int size() const { return static_cast<int>(entries.size()) / entries_per_token; }
  std::span<const TokenLogprob> operator[](int i) const {
    return entries.subspan(static_cast<std::size_t>(i) * entries_per_token, entries_per_token);
  }
};

// What one step did for one request. Valid until the next Step.
struct RequestUpdate {
  RequestId id = 0;
  std::span<const TokenId> new_tokens = {};  // emitted by this step, in order; may be empty
  int num_accepted = 0;                      // of new_tokens, from the first: draft tokens
  int num_earlier_tokens = 0;                // of the output, emitted before new_tokens
  FinishReason finish_reason = FinishReason::kNone;
  int num_cached_tokens = 0;    // prompt tokens that the prefix cache provided
  TokenLogprobs logprobs = {};  // of new_tokens, if asked for
  // Of the next prompt tokens, if asked for: those of num_earlier_prompt_logprobs tokens came in
  // earlier updates.
  TokenLogprobs prompt_logprobs = {};
  int num_earlier_prompt_logprobs = 0;

  // Set when finished.
  TokenId stop_token = -1;     // the token that stopped it, when a token did
  int stop_string_index = -1;  // into SamplingParams::stop, when a string did
  // Length of the text to keep, in bytes of the concatenated token bytes; -1: all of it.
  std::int64_t num_text_bytes = -1;
  std::string error = {};  // why, for kError
  const RequestMetrics* metrics = nullptr;
};

struct ModelLimits {
  int vocab_size = 0;
  int max_model_len = 0;  // of a request
  int model_max_len = 0;  // the model's own limit, which the KV cache may not have room for
  int num_kv_blocks = 0;
  int block_size = 0;
  std::int64_t num_weight_bytes = 0;  // as packed
  // The same by format: "float32", "bfloat16", "int8", "int4" and others of quantized checkpoints.
  std::map<std::string, std::int64_t> weight_bytes;
  // Linear layers that the checkpoint stores as integers and no format holds, so that they are
  // floats, by the reason.
  std::map<std::string, int> num_unpacked_layers;
  std::int64_t num_bytes_per_token = 0;  // weight bytes read for one decoded row
  // Whether EngineOptions::weight_cache was used: "off", "read", "written" or "not written: " and
  // why.
  std::string weight_cache;
  std::vector<TokenId> eos_token_ids;
  std::string dtype;  // of weights that are not integers
  std::string kv_cache_dtype;
  std::string isa;
  int num_threads = 0;
};

// How a request is scheduled, cached and drafted; nothing here changes its tokens, but for how many
// it has.
struct SubmitOptions {
  int priority = 0;             // lower values run first; needs SchedulingPolicy::kPriority
  std::string cache_salt = {};  // cached prefixes are shared among requests with equal salts only
  // A text that the output is likely to resemble, such as a file that is edited; at most
  // ModelLimits::max_model_len tokens. Drafts for requests that are given it, and for no others,
  // come from it first, without a SpeculativeMethod too. Null: none.
  std::shared_ptr<const Prediction> prediction = {};
  // From when on the request, running or waiting, ends at the beginning of a step with what it has.
  // max(): never.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
};

class Engine {
 public:
  // Maps and packs the model. Throws InvalidArgument or CheckpointError.
  static std::unique_ptr<Engine> Create(const EngineOptions& options);

  virtual ~Engine() = default;

  // Bytes of each token, indexed by id; needed by requests with stop strings. Those of special
  // tokens belong to the text of requests with skip_special_tokens = false only, but stop strings
  // may name them in any request. REQUIRES: no request is unfinished.
  virtual void SetTokenBytes(std::vector<std::string> token_bytes,
                             std::vector<TokenId> special_tokens = {}) = 0;

  // Tokens that end a text besides those of config.json and generation_config.json: the end of a
  // tokenizer, which the engine does not read. Ids beyond the vocabulary end nothing. Throws
  // InvalidArgument for negative ones. REQUIRES: no request is unfinished.
  virtual void AddEosTokens(const std::vector<TokenId>& tokens) = 0;

  // Throws InvalidArgument when the prompt or the parameters can never be served, and QueueFull
  // when as many requests wait as may; DeviceError where the device was lost in a step.
  virtual RequestId Submit(std::span<const TokenId> prompt, const SamplingParams& params,
                           RequestHooks hooks = {}, const SubmitOptions& options = {}) = 0;

  // Throws QueueFull unless so many more requests may be submitted now, and InvalidArgument when
  // they never could be.
  virtual void CheckRoom(int num_requests) const = 0;

  // False when no such request is unfinished. The final update comes with the next Step; the
  // request counts as waiting no more. Never waits for a call of Submit or Step.
  virtual bool Cancel(RequestId id) = 0;

  // Cancels every request that a step has had, also one that failed, and returns the lowest id of
  // the others: after a step that would fail again, later requests run. Like Cancel it never waits.
  virtual RequestId CancelStarted() noexcept = 0;

  virtual bool HasUnfinished() const = 0;

  // Runs one draft/verify step. The updates stay valid until the next Step. An exception loses no
  // update: the next Step goes on, and reports what this one did. After a DeviceError that is_lost,
  // every Step throws it while there are requests: cancel them.
  virtual std::span<const RequestUpdate> Step() = 0;

  // Drops every cached prefix and every past output that drafters remember.
  // REQUIRES: no request is unfinished.
  virtual void ResetCaches() = 0;

  // Lets drafters learn from outputs of earlier engines, given from the newest to the oldest, in
  // one call or in several, the last with is_last. They are indexed in the calling thread, a
  // million tokens in a second or two, while others step: requests may draft from them a step
  // later. Calls wait for each other. False when more are not wanted: memory is full, or no drafter
  // learns from outputs. Throws InvalidArgument for token ids beyond the vocabulary.
  virtual bool RestoreOutputs(std::span<const PastOutput> outputs, bool is_last) = 0;

  // Drops every cached prefix. False, and nothing dropped, while a request is unfinished.
  virtual bool ResetPrefixCache() = 0;

  // Writes a trace of the steps to come, in Chrome's trace format; an existing file is overwritten.
  // False, and nothing done, while another trace is written. Throws InvalidArgument when the file
  // cannot be written. The environment variable FORERUN_TRACE starts one with the engine.
  virtual bool StartTrace(const std::string& path) = 0;

  // Ends the trace that is being written, if there is one. Throws InvalidArgument when a part of it
  // could not be written.
  virtual void StopTrace() = 0;

  virtual EngineMetrics metrics() const = 0;
  virtual const ModelLimits& limits() const = 0;
};

}  // namespace forerun

#endif  // FORERUN_ENGINE_H_
