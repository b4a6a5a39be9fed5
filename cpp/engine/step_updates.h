// What a step reports: updates, and the finished requests that they point into. A step that throws
// leaves its updates to the next one.
#ifndef FORERUN_CPP_ENGINE_STEP_UPDATES_H_
#define FORERUN_CPP_ENGINE_STEP_UPDATES_H_

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "cpp/sched/request.h"
#include "forerun/engine.h"

namespace forerun {

class StepUpdates {
 public:
  // Returns whether the last step's updates were delivered; if not, this step's follow them.
  bool BeginStep() {
    if (!std::exchange(is_complete_, false)) return false;
    updates_.clear();
    finished_.clear();
    return true;
  }
  std::span<const RequestUpdate> EndStep() {
    is_complete_ = true;
    return updates_;
  }

  // Makes room for the updates of this many requests: until EndStep adding them allocates nothing.
  void Reserve(std::size_t num_requests) {
    updates_.reserve(updates_.size() + num_requests);
    finished_.reserve(updates_.size() + num_requests);
  }
  void Add(const RequestUpdate& update) { updates_.push_back(update); }
  // REQUIRES: the last update is the request's.
  void Finish(std::unique_ptr<Request> request) { finished_.push_back(std::move(request)); }

  RequestUpdate& last() { return updates_.back(); }
  std::span<const std::unique_ptr<Request>> finished() const { return finished_; }

 private:
  std::vector<RequestUpdate> updates_;
  std::vector<std::unique_ptr<Request>> finished_;
  bool is_complete_ = true;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_STEP_UPDATES_H_
