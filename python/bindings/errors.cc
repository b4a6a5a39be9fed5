#include <pybind11/gil_safe_call_once.h>

#include "forerun/error.h"
#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

struct ErrorClasses {
  py::object invalid_argument, checkpoint, device, queue_full, busy, internal;
};

const ErrorClasses& Classes() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<ErrorClasses> storage;
  return storage
      .call_once_and_store_result([] {
        py::module_ errors = py::module_::import("forerun.errors");
        return ErrorClasses{errors.attr("InvalidArgumentError"), errors.attr("CheckpointError"),
                            errors.attr("DeviceError"),          errors.attr("QueueFullError"),
                            errors.attr("EngineBusyError"),      errors.attr("InternalError")};
      })
      .get_stored();
}

// An error of three texts, which its class in Python has as attributes.
void RaiseTexts(const py::object& cls, const std::string& first, const std::string& second,
                const std::string& third) {
  py::object instance = cls(first, second, third);
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
      RaiseTexts(Classes().checkpoint, error.field(), error.value(), error.expected());
    } catch (const InvalidArgument& error) {
      RaiseTexts(Classes().invalid_argument, error.field(), error.value(), error.expected());
    } catch (const DeviceError& error) {
      py::object instance =
          Classes().device(error.wanted(), error.found(), error.remedy(), error.is_lost());
      PyErr_SetObject(Classes().device.ptr(), instance.ptr());
    } catch (const QueueFull& error) {
      py::object instance = Classes().queue_full(error.limit());
      PyErr_SetObject(Classes().queue_full.ptr(), instance.ptr());
    } catch (const EngineBusy& error) {
      PyErr_SetString(Classes().busy.ptr(), error.what());
    } catch (const InternalError& error) {
      PyErr_SetString(Classes().internal.ptr(), error.what());
    }
  });
}

}  // namespace forerun
