#include "cpp/draft_tree/draft_tree.h"

#include <iomanip>
#include <sstream>

namespace forerun {

std::string DraftTree::DebugString() const {
  std::ostringstream text;
  text << "draft of " << size() << " nodes" << (has_draft_probabilities() ? ", sampled" : "");
  for (int i = 0; i < size(); ++i) {
    text << "\n  " << i << ": token " << tokens[i] << " after ";
    if (parents[i] == kDraftRoot) {
      text << "the root";
    } else {
      text << parents[i];
    }
    text << ", confidence " << std::fixed << std::setprecision(2) << confidence[i];
  }
  return text.str();
}

}  // namespace forerun
