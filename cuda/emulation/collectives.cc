// The barriers and collectives of Scheduler.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cuda/emulation/detector.h"
#include "cuda/emulation/scheduler.h"

namespace forerun::emulation {
namespace {

bool IsSame(const Site& a, const Site& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::uint64_t Combine(WarpOp op, std::uint64_t all, std::uint64_t value, unsigned lane) {
  const auto number = static_cast<std::int32_t>(static_cast<std::uint32_t>(value));
  const auto so_far = static_cast<std::int32_t>(static_cast<std::uint32_t>(all));
  switch (op) {
    case WarpOp::kBallot:
      return all | value << lane;
    case WarpOp::kAny:
    case WarpOp::kOr:
      return all | value;
    case WarpOp::kAll:
    case WarpOp::kAnd:
      return all & value;
    case WarpOp::kXor:
      return all ^ value;
    case WarpOp::kAdd:
      return all + value;
    case WarpOp::kMin:
      return std::min(all, value);
    case WarpOp::kMax:
      return std::max(all, value);
    case WarpOp::kMinSigned:
      return static_cast<std::uint32_t>(std::min(so_far, number));
    case WarpOp::kMaxSigned:
      return static_cast<std::uint32_t>(std::max(so_far, number));
    default:
      return 0;
  }
}

std::uint64_t Identity(WarpOp op) {
  switch (op) {
    case WarpOp::kAll:
    case WarpOp::kAnd:
    case WarpOp::kMin:
      return 0xffffffffu;
    case WarpOp::kMinSigned:
      return 0x7fffffffu;
    case WarpOp::kMaxSigned:
      return 0x80000000u;
    default:
      return 0;
  }
}

bool IsShuffle(WarpOp op) { return op >= WarpOp::kShuffle && op <= WarpOp::kShuffleXor; }

}  // namespace

std::string NameOf(WarpOp op) {
  static const char* const kNames[] = {"__syncwarp",
                                       "__shfl_sync",
                                       "__shfl_up_sync",
                                       "__shfl_down_sync",
                                       "__shfl_xor_sync",
                                       "__ballot_sync",
                                       "__any_sync",
                                       "__all_sync",
                                       "__reduce_add_sync",
                                       "__reduce_min_sync",
                                       "__reduce_max_sync",
                                       "__reduce_min_sync (signed)",
                                       "__reduce_max_sync (signed)",
                                       "__reduce_and_sync",
                                       "__reduce_or_sync",
                                       "__reduce_xor_sync",
                                       "__match_any_sync",
                                       "warp-wide instruction"};
  return kNames[static_cast<int>(op)];
}

std::string NameOf(const Site& site) {
  const char* const slash = std::strrchr(site.file_name(), '/');
  return std::string(slash != nullptr ? slash + 1 : site.file_name()) + ":" +
         std::to_string(site.line());
}

std::string Hex(unsigned value) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", value);
  return text;
}

// ---- Barriers

int Barrier(Vote vote, bool predicate, const Site& site) {
  return scheduler().WaitAtBarrier(vote, predicate, site);
}

void Scheduler::CompleteBarrier() {
  ++counters().barriers;
  vote_result_ = votes_;
  num_at_barrier_ = 0;
  if (detector != nullptr) detector->PassBarrier();
  Release(0, num_threads_, State::kAtBarrier);
}

// Stricter than a GPU, which counts arrivals: threads that meet at two barriers of the source are
// nearly always a mistake.
int Scheduler::WaitAtBarrier(Vote vote, bool predicate, const Site& site) {
  if (!is_running_) Fail("a barrier outside of a kernel at " + NameOf(site));
  if (num_at_barrier_ == 0) {
    barrier_site_ = site;
    vote_ = vote;
    votes_ = vote == Vote::kAnd ? 1 : 0;
  } else if (!IsSame(barrier_site_, site) || vote_ != vote) {
    Fail("divergent __syncthreads: some threads wait at " + NameOf(barrier_site_) +
         ", this one at " + NameOf(site));
  }
  if (vote == Vote::kCount) votes_ += predicate ? 1 : 0;
  if (vote == Vote::kAnd) votes_ &= predicate ? 1 : 0;
  if (vote == Vote::kOr) votes_ |= predicate ? 1 : 0;
  Thread& self = threads_[thread_];
  self.state = State::kAtBarrier;
  self.site = site;
  if (++num_at_barrier_ == num_live_) CompleteBarrier();
  Yield();
  return vote_result_;
}

// ---- Collectives of a warp

std::uint64_t Collective(const WarpCall& call, const Site& site) {
  return scheduler().WaitInWarp(call, site);
}

std::uint64_t Scheduler::WaitInWarp(const WarpCall& call, const Site& site) {
  ++counters().collectives;
  CheckLanes(call, site);
  const unsigned self = thread_, lane = self % kWarpSize, first = self - lane;
  Warp& warp = warps_[self / kWarpSize];
  Thread& thread = threads_[self];
  thread.state = State::kInWarp;
  thread.site = site;
  thread.call = call;
  warp.waiting |= 1u << lane;
  if ((warp.waiting & call.mask) != call.mask) {
    Yield();
    return thread.call.value;
  }
  ExchangeLanes(call, site);  // the last lane works for all
  warp.waiting &= ~call.mask;
  if (call.op == WarpOp::kSync && detector != nullptr) {
    detector->SyncWarp(self / kWarpSize, call.mask);
  }
  const bool goes_on = options().order != Order::kRandom || Random() % 2 == 0;
  if (goes_on) thread.state = State::kReady;
  Release(first, std::min(kWarpSize, num_threads_ - first), State::kInWarp, call.mask);
  if (!goes_on) Yield();
  return thread.call.value;
}

void Scheduler::CheckLanes(const WarpCall& call, const Site& site) const {
  const auto fail = [&](const std::string& what) {
    Fail(NameOf(call.op) + " at " + NameOf(site) + ": " + what);
  };
  if (!is_running_) fail("outside of a kernel");
  const Warp& warp = warps_[thread_ / kWarpSize];
  if ((call.mask >> (thread_ % kWarpSize) & 1u) == 0) {
    fail("the calling lane is not in mask " + Hex(call.mask));
  }
  if ((call.mask & warp.absent) != 0) {
    fail("mask " + Hex(call.mask) + " names lanes that have exited or do not exist (" +
         Hex(call.mask & warp.absent) + ")");
  }
  if (call.width == 0 || call.width > kWarpSize || (call.width & (call.width - 1)) != 0) {
    fail("width " + std::to_string(call.width) + " is not a power of 2 up to 32");
  }
}

// The lane whose value a lane gets, as the PTX of shfl says.
unsigned Scheduler::SourceLane(unsigned lane, const WarpCall& call) const {
  const unsigned width = call.width, base = lane & ~(width - 1), operand = call.operand;
  switch (call.op) {
    case WarpOp::kShuffle:
      return base + (operand & (width - 1));
    case WarpOp::kShuffleUp:
      return lane - base >= operand ? lane - operand : lane;
    case WarpOp::kShuffleDown:
      return operand < base + width - lane ? lane + operand : lane;
    default:
      return (lane ^ operand) < base + width ? lane ^ operand : lane;
  }
}

void Scheduler::ExchangeLanes(const WarpCall& call, const Site& site) {
  const unsigned first = thread_ / kWarpSize * kWarpSize;
  const auto is_in = [&](unsigned lane) { return (call.mask >> lane & 1u) != 0; };
  std::uint64_t values[kWarpSize] = {}, all = Identity(call.op);
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (!is_in(lane)) continue;
    const Thread& other = threads_[first + lane];
    if (other.call.op != call.op || other.call.mask != call.mask ||
        other.call.width != call.width || !IsSame(other.site, site)) {
      Fail("divergent warp collective: " + ThreadName(first + lane) + " is in " +
           NameOf(other.call.op) + " with mask " + Hex(other.call.mask) + " at " +
           NameOf(other.site) + ", this one in " + NameOf(call.op) + " with mask " +
           Hex(call.mask) + " at " + NameOf(site));
    }
    values[lane] = other.call.value;
    all = Combine(call.op, all, values[lane], lane);
  }
  if (call.op == WarpOp::kInstruction) call.instruction(values);
  if (call.op == WarpOp::kSync || call.op == WarpOp::kInstruction) return;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (!is_in(lane)) continue;
    WarpCall& theirs = threads_[first + lane].call;
    if (IsShuffle(call.op)) {
      const unsigned source = SourceLane(lane, theirs);
      if (!is_in(source)) {
        Fail(NameOf(call.op) + " at " + NameOf(site) + ": lane " + std::to_string(lane) +
             " reads lane " + std::to_string(source) + ", which is not in mask " + Hex(call.mask));
      }
      theirs.value = values[source];
    } else if (call.op == WarpOp::kMatchAny) {
      theirs.value = 0;
      for (unsigned other = 0; other < kWarpSize; ++other) {
        if (is_in(other) && values[other] == values[lane]) theirs.value |= 1ull << other;
      }
    } else {
      theirs.value = all;
    }
  }
}

}  // namespace forerun::emulation
