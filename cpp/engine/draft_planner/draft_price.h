// Whether to ask a drafter that is a model: its guesses cost time before they are made.
//
// What is compared, both by measurement: the tokens that drafts bring, each worth the time of a
// plain token, and the time that drafting them and checking them takes. What is expected of a
// request's drafts is what its last ones brought, and as long as these are few what drafts of all
// requests do. Where the drafter has to catch up with the request first, as behind a prompt, the
// drafts to come must be worth that too. What does not pay is tried all the same, for a small part
// of the time that goes by without it.
#ifndef FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_PRICE_H_
#define FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_PRICE_H_

namespace forerun {

class DraftPrice {
 public:
  // Known tokens that cost a forward next to nothing beside the last one.
  static constexpr int kFewRows = 16;

  // What a request's drafts brought; about the last fifty, and the less the longer ago.
  struct Record {
    double num_drafts = 0, num_accepted = 0, num_rows = 0;
    double trial_seconds = 0;  // that a draft may take which seems not to pay
    bool was_asked = false;    // for this step
    // Drafts that are asked for whatever others brought, unless there is much to catch up with.
    int num_first_left = 2;
  };

  // Of a step: seconds of a step without drafts, for each request in it, and of one more row.
  struct StepCost {
    double seconds_per_request = 0;
    double seconds_per_row = 0;
  };

  // What the drafter took for a step, and the known tokens that it had not seen before of requests
  // that have more than kFewRows of them.
  void ObserveDrafting(int num_requests, int num_forwards, int num_rows_behind, double seconds);
  // To be called for every step that emits.
  void ObserveVerdict(int num_rows, int num_accepted, Record& record);

  // Whether to ask for a draft of a request that can still draft this many tokens, and of which the
  // drafter has not seen so many. To be called once a step.
  bool Pays(const StepCost& step, int num_rows_behind, int num_tokens_left, Record& record);

  // What an ended request did not use for trials is the next one's.
  void End(const Record& record) { all_.trial_seconds += record.trial_seconds; }

  // A path that is less probable is not worth another guess behind it: its row, and its part of a
  // forward pass of the drafter.
  double LeastPathProbability(const StepCost& step) const;

 private:
  // A mean of what was measured, of all at first and of the last ones later.
  struct Seconds {
    double mean = 0, weight = 0;
    void Observe(double seconds);
  };

  double CatchingUp(int num_rows_behind) const;

  Seconds per_draft_, per_forward_;  // of a request that the drafter keeps up with
  Seconds per_missing_row_;
  // Of all requests; its trial_seconds are those that ended ones did not use. Begins with a few
  // good drafts, since a drafter is there to be tried.
  Record all_ = {.num_drafts = 4, .num_accepted = 4, .num_rows = 8};
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_DRAFT_PLANNER_DRAFT_PRICE_H_
