// An engine and the updates of its steps, as Python has them.
#ifndef FORERUN_PYTHON_BINDINGS_ENGINE_H_
#define FORERUN_PYTHON_BINDINGS_ENGINE_H_

#include <pybind11/pybind11.h>

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cpp/draft/neural/draft_recorder.h"
#include "cpp/engine/create_engine.h"
#include "forerun/engine.h"
#include "python/bindings/gil.h"
#include "python/bindings/hooks.h"

namespace forerun {

// [tokens, entries per token], owned.
struct OwnedLogprobs {
  explicit OwnedLogprobs(const TokenLogprobs& logprobs)
      : entries(logprobs.entries.begin(), logprobs.entries.end()),
        shape{logprobs.size(), logprobs.entries_per_token} {}

  std::vector<TokenLogprob> entries;
  std::array<pybind11::ssize_t, 2> shape;
};

// A RequestUpdate that owns what it shows, so that Python may keep it beyond the next step.
struct OwnedUpdate {
  explicit OwnedUpdate(const RequestUpdate& update)
      : view(update),
        new_tokens(update.new_tokens.begin(), update.new_tokens.end()),
        logprobs(update.logprobs),
        prompt_logprobs(update.prompt_logprobs) {
    if (update.metrics != nullptr) metrics = *update.metrics;
  }

  RequestUpdate view;  // its spans and pointer are stale: never read
  std::vector<TokenId> new_tokens;
  OwnedLogprobs logprobs, prompt_logprobs;
  std::optional<RequestMetrics> metrics;
};

// An engine and the updates of its last step.
class PythonEngine {
 public:
  using Updates = std::vector<std::shared_ptr<OwnedUpdate>>;

  PythonEngine(const EngineOptions& options, bool record_draft_logits) {
    const ReleaseGil release;
    engine_ = CreateEngine(options, record_draft_logits ? &recorder_ : nullptr);
  }

  Engine& native() const { return *engine_; }
  std::vector<DraftRecord> TakeDraftRecords() { return recorder_.Take(); }
  PythonHooks& hooks() { return hooks_; }

  Updates Step() {
    // Until the updates are copied, which the engine's own guard does not know of.
    if (is_stepping_) throw EngineBusy("the engine is in a step of another thread or of this one");
    is_stepping_ = true;
    try {
      const ReleaseGil release;
      latest_ = engine_->Step();
      is_copied_ = false;
    } catch (HookInterrupt& interrupt) {
      is_stepping_ = false;
      hooks_.DropEnded();
      throw interrupt.error;
    } catch (...) {
      is_stepping_ = false;
      hooks_.DropEnded();
      throw;
    }
    is_stepping_ = false;
    Updates updates = LatestUpdates();
    hooks_.DropEnded();  // after the copy: a finalizer may let another step run
    return updates;
  }

  // Copied here if memory was short when the step ended.
  Updates LatestUpdates() {
    if (!is_copied_ && !is_stepping_) {
      updates_.clear();
      for (const RequestUpdate& update : latest_) {
        updates_.push_back(std::make_shared<OwnedUpdate>(update));
      }
      is_copied_ = true;
    }
    return updates_;
  }

 private:
  DraftRecorder recorder_;
  PythonHooks hooks_;
  std::unique_ptr<Engine> engine_;

  // Change while the GIL is held.
  std::span<const RequestUpdate> latest_;  // valid until the next step
  Updates updates_;                        // of latest_
  bool is_copied_ = true;
  bool is_stepping_ = false;
};

}  // namespace forerun

#endif  // FORERUN_PYTHON_BINDINGS_ENGINE_H_
