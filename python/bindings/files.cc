#include <pybind11/stl.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp/model/checkpoint/json_depth.h"
#include "cpp/model/checkpoint/weight_files.h"
#include "python/bindings/register.h"

namespace forerun {

namespace py = pybind11;

namespace {

// As os.fsdecode: names need not be UTF-8.
py::str FileName(const std::string& name) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeFSDefaultAndSize(name.data(), static_cast<py::ssize_t>(name.size())));
}

}  // namespace

void RegisterFiles(py::module_& module) {
  module.attr("MAX_JSON_DEPTH") = kMaxJsonDepth;
  module.def(
      "json_depth",
      [](const py::bytes& text) {
        const std::string_view view = text;
        return JsonDepth(std::as_bytes(std::span(view)));
      },
      py::arg("text"), "How many objects and arrays of a JSON text are open at once, at most.");
  py::class_<WeightFiles>(module, "WeightFiles", "Which files of a directory hold its weights.")
      .def_property_readonly(
          "names",
          [](const WeightFiles& files) {
            std::vector<py::str> names;
            for (const std::string& name : files.names) names.push_back(FileName(name));
            return names;
          },
          "File names, sorted; empty where there are no weights.")
      .def_readonly("are_pickled", &WeightFiles::are_pickled,
                    "Whether torch.save wrote them; else they are safetensors.")
      .def_readonly("index_name", &WeightFiles::index_name,
                    "The file that lists the tensors; empty where all tensors of all files count.")
      .def_readonly("file_of_tensor", &WeightFiles::file_of_tensor,
                    "File names by tensor, as the index says.");
  module.def(
      "find_weight_files", [](const py::bytes& directory) { return FindWeightFiles(directory); },
      py::arg("directory"),
      "The files of a model directory (as os.fsencode gives it) that hold its weights.");
}

}  // namespace forerun
