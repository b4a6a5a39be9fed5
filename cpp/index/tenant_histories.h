// The past outputs of all tenants, under a common bound. No tenant's requests match against those
// of another.
//
// Where the bound would be passed, that segment of any tenant goes to which nothing was added for
// the longest time. One tenant alone has what a History of its own would have.
//
// Not thread-safe. Must outlive its members.
#ifndef FORERUN_CPP_INDEX_TENANT_HISTORIES_H_
#define FORERUN_CPP_INDEX_TENANT_HISTORIES_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "cpp/index/history.h"
#include "cpp/index/suffix_index.h"
#include "forerun/types.h"

namespace forerun {

class TenantHistories {
 public:
  struct Tenant {
    explicit Tenant(History&& own) : history(std::move(own)) {}

    std::string_view name;
    History history;
    int num_members = 0;
    // What the totals count of the history.
    int num_requests = 0;
    std::int64_t num_bytes = 0;
  };

  struct Leave {
    void operator()(Tenant* tenant) const { histories->Remove(*tenant); }
    TenantHistories* histories;
  };
  // Keeps the tenant's history in existence, even while it is empty.
  using Member = std::unique_ptr<Tenant, Leave>;

  // As of a History.
  TenantHistories(int max_requests, std::int64_t max_bytes, int max_depth);
  TenantHistories(const TenantHistories&) = delete;
  TenantHistories& operator=(const TenantHistories&) = delete;

  Member Join(std::string_view name);

  // As History's, for one tenant. Add may forget outputs of others.
  void Add(Tenant& tenant, std::span<const TokenId> output);
  bool AddOlder(std::string_view name, SuffixIndex&& index, int num_requests);

  // Forgets all outputs of all tenants.
  void Clear();

  int num_requests() const { return num_requests_; }
  std::int64_t num_bytes() const { return num_bytes_; }
  int num_tenants() const { return static_cast<int>(tenants_.size()); }

  // Throws InternalError when an account or an index is broken. For tests.
  void CheckIntegrity() const;

 private:
  void Remove(Tenant& tenant);
  void Recount(Tenant& tenant);
  void DropOldest();
  void EraseIfUnused(Tenant& tenant);

  // Fixed at construction.
  int max_requests_;
  std::int64_t max_bytes_;
  int max_depth_;

  std::map<std::string, Tenant, std::less<>> tenants_;  // with outputs or members
  int num_requests_ = 0;
  std::int64_t num_bytes_ = 0;
  std::int64_t newest_time_ = 0;  // of additions, by count; those of older outputs are negative
  std::int64_t oldest_time_ = 0;
  bool has_forgotten_ = false;
};

}  // namespace forerun

#endif  // FORERUN_CPP_INDEX_TENANT_HISTORIES_H_
