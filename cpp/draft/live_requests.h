// What a drafter stores for each request between Begin and End or Forget.
#ifndef FORERUN_CPP_DRAFT_LIVE_REQUESTS_H_
#define FORERUN_CPP_DRAFT_LIVE_REQUESTS_H_

#include <string>
#include <unordered_map>
#include <utility>

#include "cpp/util/check.h"
#include "forerun/types.h"

namespace forerun {

template <typename Request>
class LiveRequests {
 public:
  // REQUIRES: the id is not live.
  Request& Add(RequestId id, Request request) {
    const auto [live, is_new] = requests_.try_emplace(id, std::move(request));
    FORERUN_CHECK(is_new, "request " + std::to_string(id) + " is already live");
    return live->second;
  }

  // REQUIRES: the id is live.
  Request& Get(RequestId id) {
    const auto live = requests_.find(id);
    FORERUN_CHECK(live != requests_.end(), "request " + std::to_string(id) + " is not live");
    return live->second;
  }

  // REQUIRES: the id is live.
  void Remove(RequestId id) {
    FORERUN_CHECK(requests_.erase(id) == 1, "request " + std::to_string(id) + " is not live");
  }

 private:
  std::unordered_map<RequestId, Request> requests_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_LIVE_REQUESTS_H_
