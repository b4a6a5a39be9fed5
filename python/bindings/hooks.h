// A request's hooks in Python. The engine calls them without the GIL; they take it.
#ifndef FORERUN_PYTHON_BINDINGS_HOOKS_H_
#define FORERUN_PYTHON_BINDINGS_HOOKS_H_

#include <pybind11/pybind11.h>

#include "forerun/request_hooks.h"

namespace forerun {

// KeyboardInterrupt, SystemExit, or what a signal handler raised while the hook ran: it must leave
// Step. Other exceptions fail the request. Not
// derived from std::exception, so that nobody takes it for a failure of the request.
struct HookInterrupt {
  pybind11::error_already_set error;
};

// None makes none. A constraint has the methods restart(), advance(token_ids) -> number taken,
// rollback(num_tokens), fill_mask(address, num_bytes) and forced() -> token_ids; a logits hook is a
// callable of token_ids and a float32 array. REQUIRES: the GIL is held.
RequestHooks MakeHooks(const pybind11::object& constraint, const pybind11::object& logits_hook);

}  // namespace forerun

#endif  // FORERUN_PYTHON_BINDINGS_HOOKS_H_
