// Whether to ask a drafter that is a model: its guesses cost time before they are made.
//
// What is compared, both by measurement: the tokens that a request's drafts brought lately, each
// worth the time of a plain token, and the time that drafting them and checking them took. A
// request whose drafts do not pay is asked again after a while, and after ever longer ones.
#ifndef FORERUN_CPP_DRAFT_DRAFT_PRICE_H_
#define FORERUN_CPP_DRAFT_DRAFT_PRICE_H_

namespace forerun {

class DraftPrice {
 public:
  // Of a request; about the last twenty drafts.
  struct Record {
    double num_drafts = 0, num_accepted = 0, num_rows = 0;
    int num_skipped = 0;  // steps since the last draft
    int patience = kLeastPatience;
    bool was_asked = false;  // for this step
  };

  // Of a step: seconds of a step without drafts, for each request in it, and of one more row.
  struct StepCost {
    double seconds_per_request = 0;
    double seconds_per_row = 0;
  };

  // What the drafter took for a step.
  void ObserveDrafting(int num_requests, int num_forwards, double seconds);
  // To be called for every step that emits.
  static void ObserveVerdict(int num_rows, int num_accepted, Record& record);

  // Counts a skipped step where the answer is no.
  bool Pays(const StepCost& step, Record& record) const;

  // A path that is less probable is not worth another guess behind it: its row, and its part of a
  // forward pass of the drafter.
  double LeastPathProbability(const StepCost& step) const;

 private:
  static constexpr int kLeastPatience = 8;
  static constexpr int kMostPatience = 128;

  double seconds_per_draft_ = 0;    // of a request
  double seconds_per_forward_ = 0;  // likewise
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_DRAFT_PRICE_H_
