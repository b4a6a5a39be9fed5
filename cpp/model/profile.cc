#include "cpp/model/profile.h"

#include <algorithm>
#include <numeric>

#include "cpp/kv/slot_map.h"
#include "cpp/model/model_files.h"
#include "cpp/ops/cpu/timed_ops.h"
#include "cpp/util/read_bandwidth.h"
#include "forerun/error.h"

namespace forerun {
namespace {

constexpr int kProfileBlockSize = 16;
constexpr int kPromptRows = 512;
constexpr int kMostLogits = 16;
constexpr int kFewestTokens = 66;  // 16 rows after the shortest context

struct Pass {
  int num_rows, num_context, num_logits;
};

class Profiler {
 public:
  explicit Profiler(const ProfileOptions& options)
      : num_rounds_(options.num_rounds),
        backend_(CheckThreads(options.model.num_threads), options.model.isa),
        ops_(backend_.ops()),
        reader_(backend_.team(), options.read_bytes) {
    ModelFiles files(options.model.model, options.model.dtype, options.model.quantization);
    max_len_ = ResolveMaxLen(options.model, files.spec);
    if (max_len_ < kFewestTokens) {
      throw InvalidArgument("max_model_len", std::to_string(max_len_),
                            "at least " + std::to_string(kFewestTokens) + " for a profile");
    }
    const int num_blocks = NumBlocksFor(max_len_, kProfileBlockSize);
    model_ =
        files.Load(ops_, {std::min(kPromptRows, max_len_), max_len_, kProfileBlockSize, num_blocks,
                          kMostLogits, files.KvDType(options.model.kv_cache_dtype)});
    ops_.SetHead(&model_->weights().head());
    block_table_.resize(num_blocks);
    std::iota(block_table_.begin(), block_table_.end(), 0);
    for (int i = 0; i < kPromptRows; ++i) tokens_.push_back((i * 7919) % files.spec.vocab_size);
  }

  void Run(const std::function<void(const PassProfile&)>& report) {
    for (int begin = 0; begin < max_len_; begin += kPromptRows) {
      // So that no cache is read that was never written.
      Forward({std::min(kPromptRows, max_len_ - begin), begin, 1});
    }
    for (int num_context : {50, 600, 4000}) {
      for (int num_rows : {1, 5, 16}) Report({num_rows, num_context, num_rows}, report);
    }
    for (int num_context : {0, 2048}) Report({kPromptRows, num_context, 1}, report);
  }

 private:
  double Forward(const Pass& pass) {
    const SequenceRows sequence{0, pass.num_rows, pass.num_context, block_table_};
    std::vector<std::int32_t> wanted(pass.num_logits);
    std::iota(wanted.begin(), wanted.end(), pass.num_rows - pass.num_logits);
    const double begin = Now();
    model_->Forward({std::span(tokens_).first(pass.num_rows), {&sequence, 1}, wanted});
    return Now() - begin;
  }

  // Of a gate_up matrix alone, which stays in cache.
  double ArithmeticRate() {
    const PackedMatrix& matrix = *model_->weights().layers[0].gate_up;
    constexpr int kRows = 64;
    std::vector<float> x(static_cast<std::size_t>(kRows) * matrix.num_inputs(), 0.01f);
    std::vector<float> y(static_cast<std::size_t>(kRows) * matrix.num_outputs());
    const double begin = Now();
    backend_.ops().MatMul(ConstRows(x.data(), kRows, matrix.num_inputs()), matrix, nullptr, false,
                          Rows(y.data(), kRows, matrix.num_outputs()));
    return 2.0 * kRows * matrix.num_inputs() * matrix.num_outputs() / (Now() - begin);
  }

  void Report(const Pass& pass, const std::function<void(const PassProfile&)>& report) {
    if (pass.num_context + pass.num_rows > max_len_) return;
    std::vector<double> total, read, arithmetic;
    std::vector<std::vector<double>> seconds(kNumOperations);
    for (int round = 0; round < num_rounds_; ++round) {
      read.push_back(1 / reader_.SecondsPerByte());
      ArithmeticRate();
      arithmetic.push_back(ArithmeticRate());
      ops_.Clear();
      total.push_back(Forward(pass));
      for (int i = 0; i < kNumOperations; ++i) seconds[i].push_back(ops_.times()[i].seconds);
    }
    PassProfile result{pass.num_rows, pass.num_context,   Median(total),
                       Median(read),  Median(arithmetic), {}};
    double left = result.seconds;
    for (int i = 0; i < kNumOperations; ++i) {
      const OperationTime& one = ops_.times()[i];
      const double time = Median(seconds[i]);
      left -= time;
      auto& operation = result.operations.emplace_back(kOperationNames[i], time);
      if (one.operations == 0) continue;
      operation.share_of_read = one.weight_bytes / time / result.read_rate;
      operation.share_of_arithmetic = one.operations / time / result.arithmetic_rate;
    }
    result.operations.emplace_back("between", left);
    for (auto& operation : result.operations) operation.share = operation.seconds / result.seconds;
    report(result);
  }

  const int num_rounds_;
  CpuBackend backend_;
  TimedOps ops_;
  MemoryReader reader_;
  int max_len_ = 0;
  std::unique_ptr<Transformer> model_;
  std::vector<BlockId> block_table_;
  std::vector<TokenId> tokens_;
};

}  // namespace

void ProfilePasses(const ProfileOptions& options,
                   const std::function<void(const PassProfile&)>& report) {
  if (options.num_rounds < 1) {
    throw InvalidArgument("rounds", std::to_string(options.num_rounds), "an integer of at least 1");
  }
  Profiler(options).Run(report);
}

}  // namespace forerun
