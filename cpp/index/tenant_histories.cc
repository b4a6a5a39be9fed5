#include "cpp/index/tenant_histories.h"

#include <string>
#include <utility>

#include "cpp/util/check.h"

namespace forerun {

TenantHistories::TenantHistories(int max_requests, std::int64_t max_bytes, int max_depth)
    : max_requests_(max_requests), max_bytes_(max_bytes), max_depth_(max_depth) {
  const History checked(max_requests, max_bytes, max_depth);  // for its checks of the bounds
}

TenantHistories::Member TenantHistories::Join(std::string_view name) {
  auto found = tenants_.find(name);
  if (found == tenants_.end()) {
    found = tenants_.try_emplace(std::string(name), History(max_requests_, max_bytes_, max_depth_))
                .first;
    found->second.name = found->first;
  }
  ++found->second.num_members;
  return Member(&found->second, Leave{this});
}

void TenantHistories::Add(Tenant& tenant, std::span<const TokenId> output) {
  try {
    tenant.history.Add(output, ++newest_time_);
  } catch (...) {
    Recount(tenant);
    throw;
  }
  Recount(tenant);
  while (num_requests_ > max_requests_ || num_bytes_ > max_bytes_) DropOldest();
}

bool TenantHistories::AddOlder(std::string_view name, SuffixIndex&& index, int num_requests) {
  // Once a tenant has lost outputs, older ones of any tenant are not wanted.
  if (has_forgotten_ || num_requests > max_requests_ - num_requests_ ||
      index.num_bytes() > max_bytes_ - num_bytes_) {
    return false;
  }
  const Member member = Join(name);
  const bool is_added = member->history.AddOlder(std::move(index), num_requests, --oldest_time_);
  Recount(*member);
  return is_added;
}

void TenantHistories::Clear() {
  has_forgotten_ = true;
  for (auto next = tenants_.begin(); next != tenants_.end();) {
    Tenant& tenant = (next++)->second;
    tenant.history.Clear();
    Recount(tenant);
    EraseIfUnused(tenant);
  }
}

void TenantHistories::DropOldest() {
  has_forgotten_ = true;
  Tenant* oldest = nullptr;
  for (auto& [name, tenant] : tenants_) {
    if (tenant.history.num_segments() == 0) continue;
    if (oldest == nullptr || tenant.history.oldest_time() < oldest->history.oldest_time()) {
      oldest = &tenant;
    }
  }
  FORERUN_CHECK(oldest != nullptr, "more is counted than remembered");
  oldest->history.DropOldest();
  Recount(*oldest);
  EraseIfUnused(*oldest);
}

void TenantHistories::Remove(Tenant& tenant) {
  --tenant.num_members;
  EraseIfUnused(tenant);
}

void TenantHistories::EraseIfUnused(Tenant& tenant) {
  if (tenant.num_members > 0 || tenant.history.num_segments() > 0) return;
  tenants_.erase(tenants_.find(tenant.name));
}

void TenantHistories::Recount(Tenant& tenant) {
  const int num_requests = tenant.history.num_requests();
  const std::int64_t num_bytes = tenant.history.num_bytes();
  num_requests_ += num_requests - std::exchange(tenant.num_requests, num_requests);
  num_bytes_ += num_bytes - std::exchange(tenant.num_bytes, num_bytes);
}

void TenantHistories::CheckIntegrity() const {
  int num_requests = 0;
  std::int64_t num_bytes = 0;
  for (const auto& [name, tenant] : tenants_) {
    FORERUN_CHECK(tenant.name == name, "a tenant has another name");
    FORERUN_CHECK(tenant.num_members > 0 || tenant.history.num_segments() > 0,
                  "a tenant is kept for nothing");
    tenant.history.CheckIntegrity();
    num_requests += tenant.history.num_requests();
    num_bytes += tenant.history.num_bytes();
  }
  FORERUN_CHECK(num_requests == num_requests_ && num_requests <= max_requests_,
                "requests do not add up, or are too many");
  FORERUN_CHECK(num_bytes == num_bytes_ && num_bytes <= max_bytes_,
                "bytes do not add up, or are too many");
}

}  // namespace forerun
