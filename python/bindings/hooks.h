// A request's hooks in Python. The engine calls them without the GIL; they take it.
#ifndef FORERUN_PYTHON_BINDINGS_HOOKS_H_
#define FORERUN_PYTHON_BINDINGS_HOOKS_H_

#include <pybind11/pybind11.h>

#include <optional>

#include "forerun/request_hooks.h"
#include "python/bindings/gil.h"

namespace forerun {

// KeyboardInterrupt, SystemExit, or what a signal handler raised while the hook ran: it must leave
// Step. Other exceptions fail the request. Not
// derived from std::exception, so that nobody takes it for a failure of the request.
struct HookInterrupt {
  pybind11::error_already_set error;
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
// REQUIRES: the GIL is held; the batch outlives the hooks.
RequestHooks MakeHooks(const pybind11::object& constraint, const pybind11::object& logits_hook,
                       PythonConstraintBatch& batch);

}  // namespace forerun

#endif  // FORERUN_PYTHON_BINDINGS_HOOKS_H_
