#include "cpp/ops/cpu/cpu_ops.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cpp/util/check.h"
#include "cpp/verify/verifier.h"

namespace forerun {
namespace {

void CheckSameShape(ConstRows a, ConstRows b) {
  FORERUN_CHECK(a.rows == b.rows && a.cols == b.cols, "rows differ in shape");
}

}  // namespace

CpuOps::CpuOps(ThreadTeam& team, std::string isa, const CpuKernels& kernels,
               const IntegerKernels& integer_kernels)
    : team_(team),
      isa_(std::move(isa)),
      kernels_(kernels),
      integer_kernels_(integer_kernels),
      member_scratch_(team.num_threads()) {}

std::unique_ptr<PackedMatrix> CpuOps::Pack(std::span<const WeightSource> sources) {
  auto matrix = PackMatrix(sources, team_, integer_kernels_, weights_);
  if (cache_) cache_->Add(*matrix);
  return matrix;
}

std::unique_ptr<PackedMatrix> CpuOps::Restore(std::span<const PartShape> parts, int num_inputs) {
  return cache_ ? cache_->Restore(parts, num_inputs) : nullptr;
}

void CpuOps::OpenCache(std::string path, std::string key) {
  auto file = PackedFile::Open(path, key, team_);
  cache_.emplace(std::move(path), std::move(key), file.get(), team_);
  if (file) files_.push_back(std::move(file));
}

CpuOps::CacheOutcome CpuOps::CloseCache(const MakeRoomFn& make_room) {
  CacheOutcome outcome = {cache_->is_restored(), ""};
  if (!outcome.is_restored) outcome.problem = make_room(cache_->num_bytes());
  if (outcome.problem.empty()) outcome.problem = cache_->Finish();
  cache_.reset();
  return outcome;
}

const ForwardRows& CpuOps::Begin(const ForwardData& data) {
  if (data.device_tokens.top == nullptr) {
    rows_.Set(data);
    return rows_;
  }
  const auto& [top, ids] = data.device_tokens;
  tokens_.clear();
  for (const std::int32_t source : data.sources) {
    const TokenId token = std::max(top[source].token, 0);
    tokens_.push_back(ids != nullptr ? ids[token] : token);
  }
  ForwardData known = data;
  known.tokens = tokens_;
  rows_.Set(known);
  return rows_;
}

void CpuOps::Embed(const ForwardRows& rows, const PackedMatrix& table, float scale, Rows out) {
  const std::span<const TokenId> tokens = rows.tokens();
  const auto* matrix = dynamic_cast<const CpuMatrix*>(&table);
  FORERUN_CHECK(matrix != nullptr, "packed by another Ops");
  FORERUN_CHECK(static_cast<int>(tokens.size()) == out.rows && out.cols == table.num_inputs(),
                "embedding rows differ in shape");
  for (TokenId token : tokens) {
    FORERUN_CHECK(token >= 0 && token < table.num_outputs(), "no such token");
  }
  // A value costs a cache line here, hence the factor.
  ForRows(out.rows, out.cols * 8,
          [&](int row) { matrix->Unpack(tokens[row], scale, out.row(row)); });
}

void CpuOps::RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out) {
  CheckSameShape(x, out);
  FORERUN_CHECK(weight != nullptr && group > 0 && x.cols % group == 0,
                "a norm's group must divide the columns");
  ForRows(x.rows, x.cols, [&](int row) {
    for (int begin = 0; begin < x.cols; begin += group) {
      kernels_.rms_norm(x.row(row) + begin, weight, group, eps, out.row(row) + begin);
    }
  });
}

void CpuOps::Rope(Rows x, int head_dim, std::span<const std::int32_t> positions,
                  const float* cos_sin) {
  FORERUN_CHECK(head_dim > 0 && head_dim % 2 == 0 && x.cols % head_dim == 0,
                "an even head_dim must divide the columns");
  FORERUN_CHECK(static_cast<int>(positions.size()) == x.rows, "a row needs a position");
  FORERUN_CHECK(cos_sin != nullptr, "no rotation table");
  for (std::int32_t position : positions) FORERUN_CHECK(position >= 0, "a negative position");
  ForRows(x.rows, x.cols, [&](int row) {
    const float* rotation = cos_sin + std::int64_t{positions[row]} * head_dim;
    for (int begin = 0; begin < x.cols; begin += head_dim) {
      kernels_.rope(x.row(row) + begin, head_dim, rotation);
    }
  });
}

void CpuOps::GatedActivation(ConstRows gate_up, Activation activation, Rows out) {
  FORERUN_CHECK(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols,
                "gate_up must be twice as wide as out");
  ForRows(out.rows, out.cols * 4, [&](int row) {
    const float* gate = gate_up.row(row);
    kernels_.gate(gate, gate + out.cols, out.cols, activation, out.row(row));
  });
}

void CpuOps::Activate(ConstRows x, const float* bias, Activation activation, Rows out) {
  CheckSameShape(x, out);
  if (std::ssize(ones_) < x.cols) ones_.resize(x.cols, 1.0f);
  ForRows(x.rows, x.cols * 4, [&](int row) {
    float* values = out.row(row);
    if (values != x.row(row)) std::memcpy(values, x.row(row), sizeof(float) * x.cols);
    if (bias != nullptr) kernels_.add(bias, x.cols, values);
    kernels_.gate(values, ones_.data(), x.cols, activation, values);
  });
}

void CpuOps::Add(ConstRows y, Rows x) {
  CheckSameShape(y, x);
  ForRows(x.rows, x.cols, [&](int row) { kernels_.add(y.row(row), x.cols, x.row(row)); });
}

void CpuOps::Scale(float factor, Rows x) {
  ForRows(x.rows, x.cols, [&](int row) { kernels_.scale(factor, x.cols, x.row(row)); });
}

void CpuOps::SoftCap(Rows x, float cap) {
  FORERUN_CHECK(cap > 0.0f, "a soft cap must be positive");
  // Logits are a few very long rows: cut them into pieces.
  constexpr int kPiece = 2048;
  const int pieces = (x.cols + kPiece - 1) / kPiece;
  ForRows(x.rows * pieces, std::min(x.cols, kPiece) * 4, [&](int task) {
    const int begin = task % pieces * kPiece;
    const int count = std::min(kPiece, x.cols - begin);
    kernels_.soft_cap(x.row(task / pieces) + begin, count, cap);
  });
}

void CpuOps::Zero(Rows x) {
  for (int i = 0; i < x.rows; ++i) std::memset(x.row(i), 0, sizeof(float) * x.cols);
}

void CpuOps::Copy(ConstRows x, Rows out) {
  CheckSameShape(x, out);
  for (int i = 0; i < x.rows; ++i) std::memcpy(out.row(i), x.row(i), sizeof(float) * x.cols);
}

void CpuOps::GatherRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) {
  const std::span<const std::int32_t> sources = rows.indices(indices);
  FORERUN_CHECK(std::ssize(sources) == out.rows && x.cols == out.cols,
                "gathered rows differ in shape");
  for (int i = 0; i < out.rows; ++i) {
    FORERUN_CHECK(sources[i] >= 0 && sources[i] < x.rows, "no such row");
    std::memcpy(out.row(i), x.row(sources[i]), sizeof(float) * x.cols);
  }
}

void CpuOps::ScatterRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) {
  const std::span<const std::int32_t> targets = rows.indices(indices);
  FORERUN_CHECK(std::ssize(targets) == x.rows && x.cols == out.cols,
                "scattered rows differ in shape");
  for (int i = 0; i < x.rows; ++i) {
    FORERUN_CHECK(targets[i] >= 0 && targets[i] < out.rows, "no such row");
    std::memcpy(out.row(targets[i]), x.row(i), sizeof(float) * x.cols);
  }
}

void CpuOps::MoveRows(std::span<const KvMove> moves, Rows x) {
  for (const KvMove& move : moves) {
    FORERUN_CHECK(std::min(move.from, move.to) >= 0 && std::max(move.from, move.to) < x.rows,
                  "no such row");
    if (move.from == move.to) continue;
    std::memcpy(x.row(static_cast<int>(move.to)), x.row(static_cast<int>(move.from)),
                sizeof(float) * x.cols);
  }
}

}  // namespace forerun
