#include <pybind11/stl.h>

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpp/draft/formats/detect.h"
#include "cpp/model/checkpoint/gguf_blocks.h"
#include "cpp/model/checkpoint/json.h"
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

JsonObject ParseConfig(const py::bytes& text) {
  const std::string_view view = text;
  return {ParseJsonObject(std::as_bytes(std::span(view)), "config.json"), "config.json: "};
}

void RegisterFormats(py::module_& module) {
  py::class_<CheckpointFormat>(module, "CheckpointFormat", "Which format a checkpoint has.")
      .def_readonly("name", &CheckpointFormat::name,
                    "\"target\" for a language model, else the drafting method.")
      .def_readonly("evidence", &CheckpointFormat::evidence, "The tensors that show it.")
      .def_readonly("mtp_tensor", &CheckpointFormat::mtp_tensor,
                    "A tensor of a layer for multi-token prediction; empty: there is none.")
      .def_readonly("obstacle", &CheckpointFormat::obstacle,
                    "Why it does not run as a drafter; empty: it runs.")
      .def("can_serve_as", &CanServeAs, py::arg("method"),
           "Whether a checkpoint of this format can be used as this method.");
  module.def("canonical_draft_name", &CanonicalDraftName, py::arg("name"),
             "The name of a tensor without the prefixes that formats of drafters add.");
  module.def(
      "flatten_draft_config",
      [](const py::bytes& config) {
        return FlattenDraftConfig(ParseConfig(config)).value().dump();
      },
      py::arg("config"),
      "The text of a config with the objects that some formats put around or inside it laid flat.");
  module.def(
      "detect_format",
      [](const TensorShapes& tensors, const py::bytes& config) {
        return DetectFormat(tensors, ParseConfig(config));
      },
      py::arg("tensors"), py::arg("config"),
      "The format of a checkpoint, by shapes of tensors by canonical name and the text of its "
      "config; raises CheckpointError where they contradict each other.");
  module.def(
      "configured_aux_layers",
      [](const py::bytes& config) { return ConfiguredAuxLayers(ParseConfig(config)); },
      py::arg("config"),
      "The layers of the target that an EAGLE-3 head reads, each by the number of layers before "
      "it.");
  module.def("default_aux_layers", &DefaultAuxLayers, py::arg("num_layers"),
             "Those of a config that leaves them open.");
  module.def(
      "proposed_tokens",
      [](const py::bytes& config) { return ProposedTokens(ParseConfig(config)); },
      py::arg("config"), "The number of draft tokens that a config proposes, if any.");
}

}  // namespace

void RegisterFiles(py::module_& module) {
  RegisterFormats(module);
  module.attr("MAX_JSON_DEPTH") = kMaxJsonDepth;
  module.def(
      "block_types",
      [] {
        std::map<std::string, std::pair<int, int>> types;
        for (const BlockType& type : BlockTypes()) {
          types[type.name] = {type.num_weights, type.num_bytes};
        }
        return types;
      },
      "How many weights and bytes a block of each GGUF type has that is read as it is.");
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
