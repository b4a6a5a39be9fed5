// A request's hooks in Python. The engine calls them without the GIL; they acquire it.
#ifndef FORERUN_PYTHON_BINDINGS_HOOKS_H_
#define FORERUN_PYTHON_BINDINGS_HOOKS_H_

#include <pybind11/pybind11.h>

#include <mutex>
#include <optional>
#include <vector>

#include "forerun/request_hooks.h"
#include "python/bindings/gil.h"

namespace forerun {

// KeyboardInterrupt, SystemExit, or an exception of a signal handler that ran during the hook: it
// must leave Step. Other exceptions fail the request. Not derived from std::exception, so that it
// is not handled as a failure of the request.
struct HookInterrupt {
  pybind11::error_already_set error;
};

// Python objects that were dropped without the GIL, until a thread that holds it calls Clear.
class DroppedObjects {
 public:
  // REQUIRES: the GIL is held.
  ~DroppedObjects() { Clear(); }

  void Add(pybind11::object object);
  // REQUIRES: the GIL is held.
  void Clear();

 private:
  std::mutex mutex_;
  std::vector<pybind11::handle> objects_;
};

// The constraints of one engine. Begin takes the GIL and End releases it, so that a step takes it
// at most once for all of them.
class PythonConstraintBatch : public ConstraintBatch {
 public:
  void Begin() override { gil_.emplace(); }
  void End() noexcept override { gil_.reset(); }
  void FillMasks(const MaskBatch& masks) override;

 private:
  std::optional<AcquireGil> gil_;
};

// Makes the hooks of one engine's requests, which it outlives.
class PythonHooks {
 public:
  // None makes none. A logits hook is a callable of token_ids and a float32 array. A constraint has
  // the methods
  //   restart()
  //   advance(token_ids) -> number accepted
  //   rollback(num_tokens)
  //   forced() -> token_ids
  //   after(token_ids, parents) -> states     one after no token, one after each node of the draft;
  //                                           None where the constraint does not allow the node
  //   fill_masks(states, address, row_bytes)  row i for states[i]; of all constraints of an engine
  // and a state has check(), which raises if its mask could not be computed.
  // REQUIRES: the GIL is held.
  RequestHooks Make(const pybind11::object& constraint, const pybind11::object& logits_hook);

  // Drops the objects of requests that have ended or were refused. Their finalizers may call the
  // engine. REQUIRES: the GIL is held.
  void DropEnded() { dropped_.Clear(); }

 private:
  DroppedObjects dropped_;
  PythonConstraintBatch batch_;
};

}  // namespace forerun

#endif  // FORERUN_PYTHON_BINDINGS_HOOKS_H_
