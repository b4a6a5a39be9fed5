#include "cuda/emulation/instructions.h"

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda/emulation/detector.h"
#include "cuda/emulation/scheduler.h"

namespace forerun::emulation {
namespace {

constexpr std::size_t kRowBytes = 16;

void Note(const void* address, std::size_t bytes, AccessKind kind, const void* pc) {
  if (detector != nullptr) detector->Access(address, bytes, kind, pc);
}

void CheckAligned(const char* what, const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    scheduler().Fail(std::string(what) + ": the address is not a multiple of " +
                     std::to_string(bytes));
  }
}

// ---- mma
struct MmaOperands {
  float* d;
  const unsigned *a, *b;
};

float Bf16(unsigned word, int half) {
  return std::bit_cast<float>(half != 0 ? word & 0xffff0000u : word << 16);
}

// Lane l holds rows l / 4 and l / 4 + 8 of a and d, column l / 4 of b, and of the other dimension
// the pairs from l % 4 * 2 and from l % 4 * 2 + 8.
void MultiplyTiles(const std::uint64_t* values) {
  float a[16][16], b[16][8];
  double d[16][8];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *reinterpret_cast<const MmaOperands*>(values[lane]);
    const unsigned group = lane / 4, pair = lane % 4 * 2;
    for (unsigned r = 0; r < 4; ++r) {
      for (unsigned half = 0; half < 2; ++half) {
        a[group + r % 2 * 8][pair + r / 2 * 8 + half] = Bf16(mine.a[r], static_cast<int>(half));
        if (r < 2) b[pair + r * 8 + half][group] = Bf16(mine.b[r], static_cast<int>(half));
      }
      d[group + r / 2 * 8][pair + r % 2] = mine.d[r];
    }
  }
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned k = 0; k < 16; ++k) {
      for (unsigned column = 0; column < 8; ++column) {
        d[row][column] += static_cast<double>(a[row][k]) * b[k][column];
      }
    }
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *reinterpret_cast<const MmaOperands*>(values[lane]);
    const unsigned group = lane / 4, pair = lane % 4 * 2;
    for (unsigned r = 0; r < 4; ++r) {
      mine.d[r] = static_cast<float>(d[group + r / 2 * 8][pair + r % 2]);
    }
  }
}

// ---- ldmatrix
struct MatrixRow {
  const void* row;
  const void** rows;  // of all lanes, for the lane's own reads
};

void ShareRows(const std::uint64_t* values) {
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *reinterpret_cast<const MatrixRow*>(values[lane]);
    for (unsigned other = 0; other < kWarpSize; ++other) {
      mine.rows[other] = reinterpret_cast<const MatrixRow*>(values[other])->row;
    }
  }
}

void RunInstruction(void (*instruction)(const std::uint64_t*), const void* mine, const Site& site) {
  Collective({.op = WarpOp::kInstruction,
              .mask = 0xffffffffu,
              .value = reinterpret_cast<std::uint64_t>(mine),
              .instruction = instruction},
             site);
}

// Each lane reads its elements of the rows of others: what they wrote must be ordered before.
template <bool kTransposed>
void LoadMatrices(unsigned (&result)[4], const void* row, const void* pc, const Site& site) {
  CheckAligned("ldmatrix", row, kRowBytes);
  const void* rows[kWarpSize];
  const MatrixRow mine = {row, rows};
  RunInstruction(ShareRows, &mine, site);
  const unsigned lane = scheduler().thread() % kWarpSize, group = lane / 4, pair = lane % 4 * 2;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t elements[2];
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned from_row = kTransposed ? pair + i : group;
      const unsigned from_column = kTransposed ? group : pair + i;
      const auto* const element =
          static_cast<const std::uint16_t*>(rows[matrix * 8 + from_row]) + from_column;
      Note(element, sizeof *element, AccessKind::kLoad, pc);
      elements[i] = *element;
    }
    result[matrix] = elements[0] | static_cast<unsigned>(elements[1]) << 16;
  }
}

// ---- cp.async
struct PendingCopy {
  void* shared;
  const void* global;
  const void* pc;
  int group;
};
struct PendingCopies {
  std::uint64_t block = 0;  // whose copies they are: those of an earlier block are gone
  int group = 0;            // that the next copy belongs to
  std::vector<PendingCopy> copies;
};

PendingCopies& Pending() {
  static std::array<PendingCopies, kMaxThreads> threads;
  PendingCopies& mine = threads[scheduler().thread()];
  const std::uint64_t block = scheduler().block_number();
  if (mine.block != block) mine = {block, 0, {}};
  return mine;
}

}  // namespace

void MmaM16N8K16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const Site& site) {
  const MmaOperands mine = {d, a, b};
  RunInstruction(MultiplyTiles, &mine, site);
}

void LoadMatrixX4(unsigned (&result)[4], const void* row, const Site& site) {
  LoadMatrices<false>(result, row, __builtin_return_address(0), site);
}

void LoadMatrixX4Transposed(unsigned (&result)[4], const void* row, const Site& site) {
  LoadMatrices<true>(result, row, __builtin_return_address(0), site);
}

void CopyAsync16(void* shared, const void* global) {
  CheckAligned("cp.async to shared memory", shared, kRowBytes);
  CheckAligned("cp.async from global memory", global, kRowBytes);
  Note(global, kRowBytes, AccessKind::kLoad, __builtin_return_address(0));
  Note(shared, kRowBytes, AccessKind::kBeginCopy, __builtin_return_address(0));
  std::memset(shared, 0xff, kRowBytes);
  PendingCopies& mine = Pending();
  mine.copies.push_back({shared, global, __builtin_return_address(0), mine.group});
}

void CommitCopies() { ++Pending().group; }

void WaitForCopies(int num_pending_groups) {
  PendingCopies& mine = Pending();
  const int first_pending = mine.group - num_pending_groups;
  std::vector<PendingCopy> later;
  for (const PendingCopy& copy : mine.copies) {
    if (copy.group >= first_pending) {
      later.push_back(copy);
      continue;
    }
    Note(copy.shared, kRowBytes, AccessKind::kStore, copy.pc);
    std::memcpy(copy.shared, copy.global, kRowBytes);
  }
  mine.copies = std::move(later);
}

template <class T>
T Atomic(AtomicOp op, T* address, T value, T compare) {
  CheckAligned("atomic", address, sizeof(T));
  scheduler().MayInterrupt();
  Note(address, sizeof(T), AccessKind::kAtomic, __builtin_return_address(0));
  const T before = *address;
  switch (op) {
    case AtomicOp::kAdd:
      *address = static_cast<T>(static_cast<std::make_unsigned_t<T>>(before) +
                                static_cast<std::make_unsigned_t<T>>(value));
      break;
    case AtomicOp::kMin:
      *address = std::min(before, value);
      break;
    case AtomicOp::kMax:
      *address = std::max(before, value);
      break;
    case AtomicOp::kAnd:
      *address = before & value;
      break;
    case AtomicOp::kOr:
      *address = before | value;
      break;
    case AtomicOp::kXor:
      *address = before ^ value;
      break;
    case AtomicOp::kExchange:
      *address = value;
      break;
    case AtomicOp::kCompareSwap:
      if (before == compare) *address = value;
      break;
  }
  return before;
}
template int Atomic(AtomicOp, int*, int, int);
template unsigned Atomic(AtomicOp, unsigned*, unsigned, unsigned);
template unsigned long long Atomic(AtomicOp, unsigned long long*, unsigned long long,
                                   unsigned long long);

}  // namespace forerun::emulation
