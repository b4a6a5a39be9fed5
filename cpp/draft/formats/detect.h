// Which published format a checkpoint has. The engine, `forerun inspect` and embedders ask here.
#ifndef FORERUN_CPP_DRAFT_FORMATS_DETECT_H_
#define FORERUN_CPP_DRAFT_FORMATS_DETECT_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cpp/model/checkpoint/json.h"
#include "cpp/model/checkpoint/weight_reader.h"

namespace forerun {

// Shapes of a checkpoint's tensors by their names without a format's prefixes.
using TensorShapes = std::map<std::string, Shape>;

struct CheckpointFormat {
  // "target" for a whole language model, else a drafter: "eagle", "eagle3", "mtp",
  // "mlp_speculator", "medusa"; "peagle", "dflash" and "dspark" are recognized and do not run.
  std::string name;
  std::string evidence;    // the tensors that show it
  std::string mtp_tensor;  // of a layer for multi-token prediction; empty: there is none
  std::string obstacle;    // why it does not run as a drafter; empty: it runs
};

// The name that all writers of a drafter's format agree on: without prefixes.
std::string CanonicalDraftName(const std::string& name);

// The config with the objects that some formats put around or inside it laid flat.
JsonObject FlattenDraftConfig(const JsonObject& config);

// Throws CheckpointError where the tensors are of no known format, or the config (as it is stored)
// contradicts them.
CheckpointFormat DetectFormat(const TensorShapes& tensors, const JsonObject& config);

// Whether a checkpoint of this format can be used as `method`: a language model as a "draft_model",
// and as "mtp" where it has the layers.
bool CanServeAs(const CheckpointFormat& format, const std::string& method);

// The layers of the target whose hidden states an EAGLE-3 head reads, each by the number of layers
// before it, as the head's config gives them; absent: it leaves them open.
std::optional<std::vector<int>> ConfiguredAuxLayers(const JsonObject& config);

// Those of a config that leaves them open.
std::vector<int> DefaultAuxLayers(int num_layers);

// The number of draft tokens that the config of a drafter proposes; absent: it says nothing.
// Throws CheckpointError for more than kMaxDraftTokens.
std::optional<int> ProposedTokens(const JsonObject& config);

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_FORMATS_DETECT_H_
