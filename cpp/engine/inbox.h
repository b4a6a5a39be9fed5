// What any thread may do with an engine at any time: submit, cancel, ask for the metrics.
#ifndef FORERUN_CPP_ENGINE_INBOX_H_
#define FORERUN_CPP_ENGINE_INBOX_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "cpp/sched/request.h"
#include "forerun/metrics.h"
#include "forerun/types.h"

namespace forerun {

class Inbox {
 public:
  Inbox(int max_running, std::optional<int> max_waiting)
      : max_running_(max_running), max_waiting_(max_waiting) {}

  // As in forerun::Engine.
  void CheckRoom(int num_requests) const;
  // Calls `make` with the new request's id and takes the request, unless something throws.
  template <typename Make>
  RequestId Submit(const Make& make);
  // False when no such request is unfinished.
  bool Cancel(RequestId id);
  // Cancels requests that were passed on; returns the lowest id of the others.
  RequestId CancelStarted() noexcept;
  int num_unfinished() const { return num_unfinished_.load(); }
  EngineMetrics metrics() const;

  // For the thread that steps. Passes on submitted requests, one by one, and then cancelled ones
  // until they have finished. If a callback throws, requests that were added already are not added
  // again.
  template <typename Add, typename Abort>
  void Take(const Add& add, const Abort& abort);
  // These requests have finished.
  void Publish(const EngineMetrics& metrics, std::span<const std::unique_ptr<Request>> finished);

  // While it is held, no other thread submits.
  std::unique_lock<std::mutex> Lock() { return std::unique_lock(submitting_); }

 private:
  struct Unfinished {
    RequestId id;
    bool is_cancelled = false;
  };
  using Entry = std::vector<Unfinished>::iterator;

  Entry Find(RequestId id);  // the end: it is not unfinished

  const int max_running_;
  const std::optional<int> max_waiting_;

  std::mutex submitting_;  // held while a request is made, which may take long
  RequestId next_id_ = 0;

  // Held for moments, so that Cancel waits for nothing. submitting_ comes first.
  mutable std::mutex mutex_;
  std::deque<std::unique_ptr<Request>> submitted_;
  RequestId first_new_id_ = 0;          // of the requests that were not passed on
  std::vector<Unfinished> unfinished_;  // ascending ids
  int num_cancelled_ = 0;               // of unfinished_
  EngineMetrics metrics_;
  std::atomic<int> num_unfinished_{0};

  std::vector<RequestId> aborting_;  // of the thread that steps
};

template <typename Make>
RequestId Inbox::Submit(const Make& make) {
  const std::lock_guard submitting(submitting_);
  CheckRoom(1);
  std::unique_ptr<Request> request = make(next_id_);
  const std::lock_guard lock(mutex_);
  submitted_.push_back(std::move(request));
  try {
    unfinished_.push_back({next_id_});
  } catch (...) {
    submitted_.pop_back();
    throw;
  }
  ++num_unfinished_;
  return next_id_++;
}

template <typename Add, typename Abort>
void Inbox::Take(const Add& add, const Abort& abort) {
  std::unique_lock lock(mutex_);
  for (std::size_t num_left = submitted_.size(); num_left > 0; --num_left) {
    std::unique_ptr<Request>& next = submitted_.front();
    first_new_id_ = next->id + 1;  // it may be what fails
    lock.unlock();
    add(std::move(next));
    lock.lock();
    submitted_.pop_front();
  }
  aborting_.clear();
  for (const auto& [id, is_cancelled] : unfinished_) {
    if (num_cancelled_ == 0) break;
    // Requests that came meanwhile are passed on before they are aborted.
    if (is_cancelled && id < first_new_id_) aborting_.push_back(id);
  }
  lock.unlock();
  abort(std::span<const RequestId>(aborting_));
}

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_INBOX_H_
