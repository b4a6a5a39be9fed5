// The seam between the engine and whatever guesses tokens.
//
// The engine tells a drafter of every request's life: Begin with its prompt, Observe with the
// tokens that were committed, End (finished, and so worth remembering) or Forget (cancelled).
// Propose may be called between any two of them and changes nothing that later proposals of other
// requests could see.
#ifndef FORERUN_CPP_DRAFT_DRAFTER_H_
#define FORERUN_CPP_DRAFT_DRAFTER_H_

#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/kv/block_table.h"
#include "cpp/sampling/sampler.h"
#include "forerun/types.h"

namespace forerun {

// What a draft is wanted for.
struct DraftRequest {
  RequestId id;
  int max_tokens;  // the most nodes
  // How the target is sampled, and where the draft begins: all that a drafter needs that draws its
  // guesses (cpp/sampling/draft_sampling.h). Certain guesses need neither.
  const SamplingRule& rule;
  int first_output_index;
  // For drafters that are models: prompt and output, and the blocks that hold the KV of all of it
  // but the last token. Where the model may run, there is room for num_draft_slots(max_tokens)
  // more.
  std::span<const TokenId> tokens = {};
  const BlockTable* table = nullptr;
  // Paths that are less probable need not be continued.
  double least_path_probability = 0.0;
  int num_rows_behind = 0;    // what NumRowsBehind says
  bool may_run_model = true;  // there is room for its rows, and they are thought to pay
  // Guesses of somebody else, which a model may go on from; null: none.
  const DraftTree* guide = nullptr;
};

class Drafter {
 public:
  virtual ~Drafter() = default;

  virtual void Begin(RequestId id, std::span<const TokenId> prompt) = 0;
  virtual void Observe(RequestId id, std::span<const TokenId> committed) = 0;
  virtual void End(RequestId id) = 0;
  virtual void Forget(RequestId id) = 0;

  // How many slots behind the committed tokens drafting writes for so long a draft. They are the
  // request's own until its next commit. There is room only for requests that may run the model.
  virtual int num_draft_slots(int /*max_tokens*/) const { return 0; }

  // Called once a step, before Propose is, with all requests that it will be called for: where
  // drafting for many at once is cheaper, it happens here. The requests stay until then.
  virtual void Prepare(std::span<const DraftRequest> /*requests*/) {}

  // Forward passes of a network in the last Prepare; 0 where drafting costs next to nothing.
  virtual int num_forwards() const { return 0; }
  // Known tokens that it ran there, last ones not counted.
  virtual int num_caught_up() const { return 0; }
  virtual bool is_model() const { return false; }
  // Known tokens of the request, its last one not counted, that a draft would make it catch up
  // with.
  virtual int NumRowsBehind(const DraftRequest& /*request*/) const { return 0; }
  // Whether it was run for the request in the last Prepare.
  virtual bool RanModel(RequestId /*id*/) const { return false; }

  // Nodes of a draft, and accepted ones of these.
  struct Share {
    int num_nodes = 0, num_accepted = 0;
  };
  // Of this step's draft, as it was checked: what would have been proposed without the model.
  virtual Share WithoutModel(RequestId /*id*/, const DraftTree& /*draft*/,
                             std::span<const int> /*accepted_nodes*/) {
    return {};
  }

  // Fills `draft` (cleared by the caller) with at most max_tokens nodes; leaves it empty when it
  // has no guess. How many nodes it draws must not depend on what it drew: drafts are dropped when
  // they do not fit.
  virtual void Propose(const DraftRequest& request, DraftTree& draft) = 0;

  // Drops what is remembered of past requests.
  virtual void Reset() = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_DRAFTER_H_
