#include <pybind11/gil_safe_call_once.h>

#include "forerun/error.h"
#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

struct ErrorClasses {
  py::object invalid_argument, checkpoint, busy, internal;
};

const ErrorClasses& Classes() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<ErrorClasses> storage;
  return storage
      .call_once_and_store_result([] {
        py::module_ errors = py::module_::import("forerun.errors");
        return ErrorClasses{errors.attr("InvalidArgumentError"), errors.attr("CheckpointError"),
                            errors.attr("EngineBusyError"), errors.attr("InternalError")};
      })
      .get_stored();
}

void RaiseFields(const py::object& cls, const InvalidArgument& error) {
  py::object instance = cls(error.field(), error.value(), error.expected());
  PyErr_SetObject(cls.ptr(), instance.ptr());
}

}  // namespace

void RegisterErrors(py::module_&) {
  // The classes are defined in forerun/errors.py, so that Python code can raise them too.
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    if (!pointer) return;
    try {
      std::rethrow_exception(pointer);
    } catch (const CheckpointError& error) {
      RaiseFields(Classes().checkpoint, error);
    } catch (const InvalidArgument& error) {
      RaiseFields(Classes().invalid_argument, error);
    } catch (const EngineBusy& error) {
      PyErr_SetString(Classes().busy.ptr(), error.what());
    } catch (const InternalError& error) {
      PyErr_SetString(Classes().internal.ptr(), error.what());
    }
  });
}

}  // namespace forerun
