#include "cpp/draft_tree/draft_tree.h"

#include <gtest/gtest.h>

namespace forerun {
namespace {

TEST(DraftTreeTest, DebugStringShowsEachNodeWithItsParent) {
  DraftTree draft;
  EXPECT_EQ(draft.DebugString(), "draft of 0 nodes");
  draft.Append(17, kDraftRoot, 0.5f);
  draft.Append(4, 0, 0.25f);
  draft.AddRowAfter(kDraftRoot, 3);
  EXPECT_EQ(draft.DebugString(),
            "draft of 2 nodes, sampled\n"
            "  0: token 17 after the root, confidence 0.50\n"
            "  1: token 4 after 0, confidence 0.25");
}

}  // namespace
}  // namespace forerun
