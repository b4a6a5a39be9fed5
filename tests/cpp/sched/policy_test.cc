#include "cpp/sched/policy.h"

#include <gtest/gtest.h>

#include "forerun/error.h"

namespace forerun {
namespace {

struct GrantCase {
  int num_pending, num_draft, budget, num_later;
  int granted_pending, granted_draft;
};

TEST(GrantRowsTest, KnownTokensComeFirstThenTheDraftThenLaterRequests) {
  const GrantCase cases[] = {
      {1, 4, 10, 0, 1, 4},     // all fits
      {1, 4, 10, 7, 1, 2},     // one row is left for each of seven
      {1, 4, 2, 1, 1, 0},      // no room for the draft
      {100, 0, 32, 4, 28, 0},  // a prompt chunk
      {100, 3, 32, 4, 28, 0},  // no draft after an unfinished chunk
      {28, 3, 32, 4, 28, 0},   // the chunk just fits, the draft does not
      {26, 3, 32, 4, 26, 2},
  };
  for (const GrantCase& c : cases) {
    const RowGrant grant = GrantRows(c.num_pending, c.num_draft, c.budget, c.num_later);
    EXPECT_EQ(grant.num_pending, c.granted_pending);
    EXPECT_EQ(grant.num_draft, c.granted_draft);
  }
}

TEST(GrantRowsTest, ABudgetTooSmallForLaterRequestsIsABug) {
  EXPECT_THROW(GrantRows(1, 0, 3, 3), InternalError);
  EXPECT_THROW(GrantRows(0, 0, 3, 0), InternalError);
}

TEST(MayAdmitTest, NeedsASequenceARowAndAllItsBlocks) {
  const AdmissionState fits{.num_running = 3,
                            .max_num_seqs = 4,
                            .budget = 1,
                            .num_blocks_needed = 5,
                            .num_blocks_available = 5};
  EXPECT_TRUE(MayAdmit(fits));
  AdmissionState state = fits;
  state.num_running = 4;
  EXPECT_FALSE(MayAdmit(state));
  state = fits;
  state.budget = 0;
  EXPECT_FALSE(MayAdmit(state));
  state = fits;
  state.num_blocks_available = 4;
  EXPECT_FALSE(MayAdmit(state));
}

}  // namespace
}  // namespace forerun
