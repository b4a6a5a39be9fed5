#include "cpp/engine/inbox.h"

#include <algorithm>

namespace forerun {

bool Inbox::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (!std::ranges::binary_search(unfinished_, id)) return false;
  cancelled_.push_back(id);
  return true;
}

void Inbox::Publish(const EngineMetrics& metrics,
                    std::span<const std::unique_ptr<Request>> finished) {
  const std::lock_guard lock(mutex_);
  metrics_ = metrics;
  for (const auto& request : finished) std::erase(unfinished_, request->id);
  num_unfinished_.store(static_cast<int>(unfinished_.size()));
}

EngineMetrics Inbox::metrics() const {
  const std::lock_guard lock(mutex_);
  return metrics_;
}

}  // namespace forerun
