#include <pybind11/stl.h>

#include <span>
#include <string_view>

#include "cpp/model/json_depth.h"
#include "python/bindings/register.h"

namespace forerun {

namespace py = pybind11;

void RegisterFiles(py::module_& module) {
  module.attr("MAX_JSON_DEPTH") = kMaxJsonDepth;
  module.def(
      "json_depth",
      [](const py::bytes& text) {
        const std::string_view view = text;
        return JsonDepth(std::as_bytes(std::span(view)));
      },
      py::arg("text"), "How many objects and arrays of a JSON text are open at once, at most.");
}

}  // namespace forerun
