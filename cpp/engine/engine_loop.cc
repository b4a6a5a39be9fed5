#include "forerun/engine_loop.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "cpp/util/fork.h"

namespace forerun {

struct EngineLoop::State {
  State(Engine& engine, Listener& listener) : engine(engine), listener(listener) {}

  void Run();

  Engine& engine;
  Listener& listener;
  const int num_forks = NumForks();

  std::mutex mutex;
  std::condition_variable woken;
  // Guarded by the mutex, which is held during no call of the engine or the listener.
  bool may_have_work = true;
  bool is_stopping = false;

  std::mutex joining;
  std::thread thread;  // the last member: it uses the others
};

void EngineLoop::State::Run() {
  std::unique_lock lock(mutex);
  while (true) {
    woken.wait(lock, [this] { return is_stopping || may_have_work; });
    if (is_stopping) return;
    may_have_work = false;
    lock.unlock();
    bool has_failed = false;
    try {
      if (engine.HasUnfinished()) listener.OnUpdates(engine.Step());
    } catch (...) {
      has_failed = true;
      listener.OnFailure(std::current_exception());
    }
    lock.lock();
    if (!has_failed && engine.HasUnfinished()) may_have_work = true;
  }
}

EngineLoop::EngineLoop(Engine& engine, Listener& listener)
    : state_(std::make_unique<State>(engine, listener)) {
  state_->thread = std::thread([state = state_.get()] { state->Run(); });
}

EngineLoop::~EngineLoop() {
  Stop();
  // In a child the thread may have held the mutex, and cannot be joined.
  if (NumForks() != state_->num_forks) static_cast<void>(state_.release());
}

void EngineLoop::Wake() {
  if (NumForks() != state_->num_forks) return;
  {
    const std::lock_guard lock(state_->mutex);
    state_->may_have_work = true;
  }
  state_->woken.notify_one();
}

void EngineLoop::Cancel(std::span<const RequestId> ids) {
  if (NumForks() != state_->num_forks) return;
  for (const RequestId id : ids) state_->engine.Cancel(id);
  Wake();
}

bool EngineLoop::IsCurrentThread() const {
  return state_->thread.get_id() == std::this_thread::get_id();
}

void EngineLoop::Stop() {
  if (NumForks() != state_->num_forks) return;
  {
    const std::lock_guard lock(state_->mutex);
    state_->is_stopping = true;
  }
  state_->woken.notify_one();
  const std::lock_guard lock(state_->joining);
  if (state_->thread.joinable()) state_->thread.join();
}

}  // namespace forerun
