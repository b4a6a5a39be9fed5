// The CPU's operations over memory that only they can reach, as a device's is: between operations
// its pages are closed, so that host code that reads or writes them crashes. An operation that is
// given memory of the host throws.
#ifndef FORERUN_TESTS_CPP_TESTING_GUARDED_BACKEND_H_
#define FORERUN_TESTS_CPP_TESTING_GUARDED_BACKEND_H_

#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpp/ops/backend.h"
#include "cpp/ops/cpu/cpu_backend.h"
#include "cpp/util/check.h"
#include "cpp/verify/verifier.h"

namespace forerun::testing {

class GuardedMemory : public Memory {
 public:
  GuardedMemory()
      : begin_(static_cast<std::byte*>(mmap(nullptr, kNumBytes, PROT_NONE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    FORERUN_CHECK(begin_ != MAP_FAILED, "no address space");
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() override { munmap(begin_, kNumBytes); }

  void* Allocate(std::size_t num_bytes) override {
    const std::size_t rounded = (num_bytes + 63) / 64 * 64;
    if (num_used_ + rounded > kNumBytes) throw std::bad_alloc();
    std::byte* const data = begin_ + num_used_;
    num_used_ += rounded;
    ++num_allocations_;
    const Access access(*this);
    std::memset(data, 0xff, rounded);  // NaN
    return data;
  }
  // What is freed is not used again.
  void Free(void*) noexcept override {}
  void Upload(void* to, const void* from, std::size_t num_bytes) override {
    const Access access(*this);
    std::memcpy(Checked(to), from, num_bytes);
  }
  void Download(void* to, const void* from, std::size_t num_bytes) override {
    const Access access(*this);
    std::memcpy(to, Checked(from), num_bytes);
  }

  int num_allocations() const { return num_allocations_; }

  // While it lives, the memory is open.
  class Access {
   public:
    explicit Access(GuardedMemory& memory) : memory_(memory) {
      if (memory_.num_open_++ == 0) memory_.Protect(PROT_READ | PROT_WRITE);
    }
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;
    ~Access() {
      if (--memory_.num_open_ == 0) memory_.Protect(PROT_NONE);
    }

   private:
    GuardedMemory& memory_;
  };

  // Throws InternalError for memory of the host; null passes.
  template <typename T>
  T* Checked(T* data) const {
    const auto* bytes = static_cast<const void*>(data);
    FORERUN_CHECK(data == nullptr || (bytes >= begin_ && bytes < begin_ + num_used_),
                  "memory of the host");
    return data;
  }

 private:
  static constexpr std::size_t kNumBytes = std::size_t{256} << 20;

  void Protect(int protection) {
    FORERUN_CHECK(mprotect(begin_, kNumBytes, protection) == 0, "mprotect");
  }

  std::byte* const begin_;
  std::size_t num_used_ = 0;
  int num_allocations_ = 0;
  int num_open_ = 0;
};

class GuardedOps : public Ops {
 public:
  GuardedOps(Ops& ops, GuardedMemory& memory) : ops_(ops), memory_(memory) {}

  std::string isa() const override { return ops_.isa(); }
  Memory& memory() override { return memory_; }
  void Reserve(const OpsLimits& limits) override { ops_.Reserve(limits); }
  using Ops::Pack;
  std::unique_ptr<PackedMatrix> Pack(std::span<const WeightSource> sources) override {
    return ops_.Pack(sources);
  }
  std::unique_ptr<KvCache> MakeKvCache(const KvLayout& layout, int num_blocks) override {
    return ops_.MakeKvCache(layout, num_blocks);
  }
  const ForwardRows& Begin(const ForwardData& data) override {
    memory_.Checked(data.device_tokens.top);
    memory_.Checked(data.device_tokens.ids);
    const GuardedMemory::Access access(memory_);
    return ops_.Begin(data);
  }
  void MoveKv(std::span<const KvMove> moves, KvCache& cache) override { ops_.MoveKv(moves, cache); }

  void Embed(const ForwardRows& rows, const PackedMatrix& table, float scale, Rows out) override {
    Run({out}, [&] { ops_.Embed(rows, table, scale, out); });
  }
  void MatMul(ConstRows x, const PackedMatrix& weight, const float* bias, bool accumulate,
              Rows y) override {
    memory_.Checked(bias);
    Run({x, y}, [&] { ops_.MatMul(x, weight, bias, accumulate, y); });
  }
  void NormMatMul(ConstRows x, const NormWeight& norm, const PackedMatrix& weight,
                  const float* bias, Rows y) override {
    for (const float* vector : {norm.weight, bias}) memory_.Checked(vector);
    Run({x, y}, [&] { ops_.NormMatMul(x, norm, weight, bias, y); });
  }
  void GatedMatMul(ConstRows x, const NormWeight& norm, const GatedMlp& mlp, bool accumulate,
                   Rows y) override {
    for (const float* vector : {norm.weight, mlp.gate_up_bias, mlp.down_bias}) {
      memory_.Checked(vector);
    }
    Run({x, y}, [&] { ops_.GatedMatMul(x, norm, mlp, accumulate, y); });
  }
  void RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out) override {
    memory_.Checked(weight);
    Run({x, out}, [&] { ops_.RmsNorm(x, weight, group, eps, out); });
  }
  void RotateAndStore(Rows qkv, const QkNorms& norms, const ForwardRows& rows, const float* cos_sin,
                      int layer) override {
    for (const float* vector : {norms.query, norms.key, cos_sin}) memory_.Checked(vector);
    Run({qkv}, [&] { ops_.RotateAndStore(qkv, norms, rows, cos_sin, layer); });
  }
  void Attention(ConstRows query, const ForwardRows& rows, RowSet which, int layer,
                 const AttentionShape& shape, Rows out) override {
    Run({query, out}, [&] { ops_.Attention(query, rows, which, layer, shape, out); });
  }
  void GatedActivation(ConstRows gate_up, Activation activation, Rows out) override {
    Run({gate_up, out}, [&] { ops_.GatedActivation(gate_up, activation, out); });
  }
  void Activate(ConstRows x, const float* bias, Activation activation, Rows out) override {
    memory_.Checked(bias);
    Run({x, out}, [&] { ops_.Activate(x, bias, activation, out); });
  }
  void Add(ConstRows y, Rows x) override {
    Run({y, x}, [&] { ops_.Add(y, x); });
  }
  void Scale(float factor, Rows x) override {
    Run({x}, [&] { ops_.Scale(factor, x); });
  }
  void SoftCap(Rows x, float cap) override {
    Run({x}, [&] { ops_.SoftCap(x, cap); });
  }
  void Zero(Rows x) override {
    Run({x}, [&] { ops_.Zero(x); });
  }
  void Copy(ConstRows x, Rows out) override {
    Run({x, out}, [&] { ops_.Copy(x, out); });
  }
  void GatherRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) override {
    Run({x, out}, [&] { ops_.GatherRows(x, rows, indices, out); });
  }
  void ScatterRows(ConstRows x, const ForwardRows& rows, RowIndices indices, Rows out) override {
    Run({x, out}, [&] { ops_.ScatterRows(x, rows, indices, out); });
  }
  void MoveRows(std::span<const KvMove> moves, Rows x) override {
    Run({x}, [&] { ops_.MoveRows(moves, x); });
  }

 private:
  template <typename Operation>
  void Run(std::initializer_list<ConstRows> operands, const Operation& operation) {
    for (const ConstRows& rows : operands) memory_.Checked(rows.data);
    const GuardedMemory::Access access(memory_);
    operation();
  }

  Ops& ops_;
  GuardedMemory& memory_;
};

// Verifies what it downloads.
class DownloadingVerifier : public Verifier {
 public:
  DownloadingVerifier(Memory& memory, const VerifierLimits& limits)
      : memory_(memory),
        verifier_(limits),
        max_top_tokens_(limits.max_top_tokens),
        top_(memory, sizeof(TopToken) * max_top_tokens_) {}

  void Begin(ConstRows logits, std::span<const SampleRequest> requests) override {
    verifier_.Begin(Downloaded(logits), requests);
  }
  std::span<const Outcome> Finish() override { return verifier_.Finish(); }
  std::vector<TokenLogprob>& logprobs() override { return verifier_.logprobs(); }
  const TopToken* StartTop(ConstRows logits, int count, std::size_t begin) override {
    const TopToken* found = verifier_.StartTop(Downloaded(logits), count, begin);
    auto* const top = top_.as<TopToken>() + begin;
    const std::size_t num_found = static_cast<std::size_t>(logits.rows) * count;
    if (begin + num_found <= max_top_tokens_) memory_.Upload(top, found, num_found * sizeof(*top));
    return top;
  }
  void FinishTop(std::span<TopToken> out) override { verifier_.FinishTop(out); }

 private:
  ConstRows Downloaded(ConstRows logits) {
    values_.resize(static_cast<std::size_t>(logits.rows) * logits.cols);
    const Rows rows(values_.data(), logits.rows, logits.cols);
    for (int i = 0; i < logits.rows; ++i) {
      memory_.Download(rows.row(i), logits.row(i), sizeof(float) * logits.cols);
    }
    return rows;
  }

  Memory& memory_;
  HostVerifier verifier_;
  std::size_t max_top_tokens_;
  AlignedBuffer top_;
  std::vector<float> values_;
};

class GuardedBackend : public Backend {
 public:
  explicit GuardedBackend(int num_threads) : backend_(num_threads) {}

  const std::string& name() const override { return backend_.name(); }
  GuardedMemory& memory() override { return memory_; }
  Ops& ops() override { return ops_; }
  MemorySize memory_size() const override { return backend_.memory_size(); }
  std::unique_ptr<Verifier> MakeVerifier(const VerifierLimits& limits) override {
    return std::make_unique<DownloadingVerifier>(memory_, limits);
  }

 private:
  GuardedMemory memory_;
  CpuBackend backend_;
  GuardedOps ops_{backend_.ops(), memory_};
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_GUARDED_BACKEND_H_
