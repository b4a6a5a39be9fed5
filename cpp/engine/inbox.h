// What any thread may do with an engine at any time: submit, cancel, ask for the metrics.
#ifndef FORERUN_CPP_ENGINE_INBOX_H_
#define FORERUN_CPP_ENGINE_INBOX_H_

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "cpp/sched/request.h"
#include "forerun/metrics.h"
#include "forerun/types.h"

namespace forerun {

class Inbox {
 public:
  // Calls `make` with the new request's id and takes the request, unless something throws.
  template <typename Make>
  RequestId Submit(const Make& make);
  // False when no such request is unfinished.
  bool Cancel(RequestId id);
  int num_unfinished() const { return num_unfinished_.load(); }
  EngineMetrics metrics() const;

  // For the thread that steps. Passes on submitted requests, one by one, and then cancelled ones.
  // If a callback throws, requests that were passed on already are not passed on again.
  template <typename Add, typename Abort>
  void Take(const Add& add, const Abort& abort);
  // These requests have finished.
  void Publish(const EngineMetrics& metrics, std::span<const std::unique_ptr<Request>> finished);

  // While it is held, no other thread submits.
  std::unique_lock<std::mutex> Lock() const { return std::unique_lock(mutex_); }

 private:
  mutable std::mutex mutex_;
  std::deque<std::unique_ptr<Request>> submitted_;
  std::vector<RequestId> cancelled_;
  std::vector<RequestId> unfinished_;  // ascending
  RequestId next_id_ = 0;
  EngineMetrics metrics_;
  std::atomic<int> num_unfinished_{0};
};

template <typename Make>
RequestId Inbox::Submit(const Make& make) {
  const std::lock_guard lock(mutex_);
  submitted_.push_back(make(next_id_));
  try {
    unfinished_.push_back(next_id_);
  } catch (...) {
    submitted_.pop_back();
    throw;
  }
  ++num_unfinished_;
  return next_id_++;
}

template <typename Add, typename Abort>
void Inbox::Take(const Add& add, const Abort& abort) {
  const std::lock_guard lock(mutex_);
  for (; !submitted_.empty(); submitted_.pop_front()) add(std::move(submitted_.front()));
  abort(std::span<const RequestId>(cancelled_));
  cancelled_.clear();
}

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_INBOX_H_
