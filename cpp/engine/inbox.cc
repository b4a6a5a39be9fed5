#include "cpp/engine/inbox.h"

#include <cstdint>
#include <string>

#include "forerun/error.h"

namespace forerun {

void Inbox::CheckRoom(int num_requests) const {
  if (!max_waiting_) return;
  const std::int64_t most = std::int64_t{max_running_} + *max_waiting_;
  if (num_requests > most) {
    throw InvalidArgument(
        "num_requests", std::to_string(num_requests),
        "at most " + std::to_string(most) + ", max_num_seqs and max_waiting_requests together");
  }
  const std::lock_guard lock(mutex_);
  const auto num_unfinished = static_cast<std::int64_t>(unfinished_.size()) - num_cancelled_;
  if (num_unfinished + num_requests > most) throw QueueFull(*max_waiting_);
}

Inbox::Entry Inbox::Find(RequestId id) {
  const Entry found = std::ranges::lower_bound(unfinished_, id, {}, &Unfinished::id);
  return found != unfinished_.end() && found->id == id ? found : unfinished_.end();
}

bool Inbox::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  const Entry found = Find(id);
  if (found == unfinished_.end()) return false;
  num_cancelled_ += found->is_cancelled ? 0 : 1;
  found->is_cancelled = true;
  return true;
}

RequestId Inbox::CancelStarted() noexcept {
  const std::lock_guard lock(mutex_);
  for (Unfinished& request : unfinished_) {
    if (request.id >= first_new_id_) break;
    num_cancelled_ += request.is_cancelled ? 0 : 1;
    request.is_cancelled = true;
  }
  return first_new_id_;
}

void Inbox::Publish(const EngineMetrics& metrics,
                    std::span<const std::unique_ptr<Request>> finished) {
  const std::lock_guard lock(mutex_);
  metrics_ = metrics;
  for (const auto& request : finished) {
    const Entry found = Find(request->id);
    if (found == unfinished_.end()) continue;  // published by an earlier step
    if (found->is_cancelled) --num_cancelled_;
    unfinished_.erase(found);
  }
  num_unfinished_.store(static_cast<int>(unfinished_.size()));
}

EngineMetrics Inbox::metrics() const {
  const std::lock_guard lock(mutex_);
  return metrics_;
}

}  // namespace forerun
