// Engine::Create, with what the public interface leaves out.
#ifndef FORERUN_CPP_ENGINE_CREATE_ENGINE_H_
#define FORERUN_CPP_ENGINE_CREATE_ENGINE_H_

#include <memory>

#include "cpp/draft/neural/draft_recorder.h"
#include "forerun/engine.h"
#include "forerun/options.h"

namespace forerun {

// A drafter that is a model records what it computes in `recorder`, unless that is null. The
// recorder must outlive the engine. Throws as Engine::Create does.
std::unique_ptr<Engine> CreateEngine(const EngineOptions& options, DraftRecorder* recorder);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_CREATE_ENGINE_H_
