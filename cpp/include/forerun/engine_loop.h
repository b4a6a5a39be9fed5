// A thread that steps an engine while there is work, and sleeps otherwise.
//
//   forerun::EngineLoop loop(*engine, listener);
//   forerun::RequestId id = engine->Submit(prompt, params);
//   loop.Wake();
//
// The listener gets every update, in the loop's thread. In the child of a fork that thread does not
// exist, and no call does anything.
#ifndef FORERUN_ENGINE_LOOP_H_
#define FORERUN_ENGINE_LOOP_H_

#include <exception>
#include <memory>
#include <span>

#include "forerun/engine.h"

namespace forerun {

class EngineLoop {
 public:
  // Called in the loop's thread, never at the same time as another call of it.
  class Listener {
   public:
    virtual ~Listener() = default;

    // What a step did; valid until the call returns. An exception is passed to OnFailure.
    virtual void OnUpdates(std::span<const RequestUpdate> updates) = 0;

    // A step threw, and updates may be missing. The loop sleeps until it is woken, or requests are
    // cancelled: then it tries the step again. Requests that are not to be tried again must be
    // cancelled before that, or in that call (Engine::CancelStarted).
    virtual void OnFailure(std::exception_ptr error) noexcept = 0;
  };

  // Starts the thread. The engine and the listener must outlive the loop, and nothing else may call
  // what Engine allows to one thread at a time while a request is unfinished.
  EngineLoop(Engine& engine, Listener& listener);

  // Stops. REQUIRES: it is not called in the loop's thread.
  ~EngineLoop();

  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;

  // Makes the thread look for submitted requests. From any thread.
  void Wake();

  // Ends requests before the next step. Ids of which no request is unfinished are ignored. From any
  // thread.
  void Cancel(std::span<const RequestId> ids);

  // Returns when the current step has ended and the listener has its updates. What is unfinished
  // stays so. From any thread but the loop's.
  void Stop();

  bool IsCurrentThread() const;  // false once it has stopped

 private:
  struct State;

  std::unique_ptr<State> state_;
};

}  // namespace forerun

#endif  // FORERUN_ENGINE_LOOP_H_
