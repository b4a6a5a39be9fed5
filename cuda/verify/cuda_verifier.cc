#include "cuda/verify/cuda_verifier.h"

#include <algorithm>
#include <type_traits>

#include "cpp/sampling/logits_row.h"
#include "cpp/util/check.h"
#include "cuda/check_cuda.h"
#include "cuda/verify/sample_rows.h"

namespace forerun::cuda {
namespace {

constexpr char kWanted[] = "the verification of drafts on the GPU";

// Copies arrays to the host's memory, and says where they will be on the GPU. Without memory it
// counts the bytes.
class Stager {
 public:
  Stager(std::byte* host, const std::byte* device)
      : is_counting_(host == nullptr), host_(host), device_(device) {}

  template <typename T>
  const T* Add(const std::vector<T>& values) {
    T* const copy = host_.Take<T>(values.size());
    if (!is_counting_) std::ranges::copy(values, copy);
    return device_.Take<const T>(values.size());
  }
  const float* AddRows(const std::vector<const float*>& rows, int row_size) {
    auto* copy = host_.Take<float>(rows.size() * row_size);
    for (const float* row : rows) {
      if (!is_counting_) copy = std::copy_n(row, row_size, copy);
    }
    return device_.Take<const float>(rows.size() * row_size);
  }
  std::size_t num_bytes() const { return host_.num_bytes(); }

 private:
  const bool is_counting_;
  Parts host_, device_;
};

SampleArrays Stage(const SampleBatch& batch, Stager& stager) {
  SampleArrays arrays = batch.arrays();
  arrays.rules = stager.Add(batch.rules);
  arrays.rows = stager.Add(batch.rows);
  arrays.tokens = stager.Add(batch.tokens);
  arrays.parents = stager.Add(batch.parents);
  arrays.edits = stager.Add(batch.edits);
  arrays.bans = stager.Add(batch.bans);
  arrays.masks = stager.Add(batch.masks);
  arrays.scored_tokens = stager.Add(batch.scored_tokens);
  arrays.logprob_ids = stager.Add(batch.logprob_ids);
  arrays.draft_weights = stager.AddRows(batch.drawn_rows, batch.vocab_size);
  return arrays;
}

bool NeedsMass(const SampleRule& rule) {
  return rule.samples != 0 &&
         (rule.top_p < 1.0 || rule.method != static_cast<int>(AcceptanceMethod::kCoupled));
}

float ToFloat(DType dtype, const void* values, std::size_t i) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(values)[i];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(values)[i];
  return dtype == DType::kBFloat16 ? BFloat16ToFloat(bits) : Float16ToFloat(bits);
}

}  // namespace

CudaVerifier::Work::Work(const std::byte* memory, const VerifierLimits& limits) {
  Parts parts(memory);
  rows = RowWorkspace::In(
      parts.Take<std::byte>(RowWorkspace::NumBytes(limits.max_rows, limits.vocab_size)),
      limits.max_rows, limits.vocab_size);
  walk_rows = parts.Take<WalkRow>(limits.max_rows);
  draft_sums = parts.Take<Mass>(limits.max_rows);
  emitted = parts.Take<TokenId>(limits.max_rows);
  outcomes = parts.Take<WalkOutcome>(limits.max_requests);
  num_bytes = parts.num_bytes();
}

CudaVerifier::CudaVerifier(const VerifierLimits& limits, cudaStream_t stream)
    : limits_(limits),
      stream_(stream),
      done_([] {
        cudaEvent_t event = nullptr;
        CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), kWanted);
        return event;
      }()),
      batch_memory_(0),
      work_memory_(Work(nullptr, limits).num_bytes),
      staging_(0),
      results_(limits.max_requests * sizeof(WalkOutcome)),
      host_rows_(0),
      work_(work_memory_.data(), limits),
      outcomes_(limits.max_requests) {}

CudaVerifier::~CudaVerifier() {
  if (is_enqueued_) cudaStreamSynchronize(stream_);  // or memory in use would be freed
}

void CudaVerifier::Begin(ConstRows logits, std::span<const SampleRequest> requests) {
  FORERUN_CHECK(logits.rows == 0 || logits.cols == limits_.vocab_size, "logits: [rows, vocab]");
  Begin({logits.data, DType::kFloat32, logits.stride}, logits.rows, requests);
}

void CudaVerifier::Begin(const DeviceLogits& logits, int num_rows,
                         std::span<const SampleRequest> requests) {
  FORERUN_CHECK(std::ssize(requests) <= limits_.max_requests && num_rows <= limits_.max_rows,
                "a step is larger than the verifier's limits");
  // What a step that failed has left.
  if (is_enqueued_) CheckCuda(cudaStreamSynchronize(stream_), kWanted);
  logits_ = logits;
  requests_ = requests;
  batch_.Build(requests, limits_.vocab_size);
  FORERUN_CHECK(std::ssize(batch_.rows) == num_rows, "the requests have every row of logits");
  is_enqueued_ = true;
  Enqueue(Upload());
}

SampleArrays CudaVerifier::Upload() {
  Stager counter(nullptr, nullptr);
  Stage(batch_, counter);
  staging_.Grow(counter.num_bytes());
  batch_memory_.Grow(counter.num_bytes());
  Stager stager(staging_.data(), batch_memory_.data());
  const SampleArrays arrays = Stage(batch_, stager);
  CheckCuda(cudaMemcpyAsync(batch_memory_.data(), staging_.data(), stager.num_bytes(),
                            cudaMemcpyHostToDevice, stream_),
            kWanted);
  return arrays;
}

void CudaVerifier::Enqueue(const SampleArrays& arrays) {
  if (arrays.num_requests == 0) return;
  const bool needs_mass = std::ranges::any_of(batch_.rules, NeedsMass);
  CheckCuda(SampleRows(logits_, arrays, needs_mass, work_.rows, stream_), kWanted);
  const WalkArrays walk = {.batch = arrays,
                           .rows = work_.rows,
                           .num_drawn_rows = static_cast<int>(batch_.drawn_rows.size()),
                           .draft_sums = work_.draft_sums,
                           .scratch = work_.walk_rows,
                           .outcomes = work_.outcomes,
                           .emitted = work_.emitted};
  CheckCuda(LaunchWalk(logits_, walk, stream_), kWanted);
  CheckCuda(
      cudaMemcpyAsync(results_.data(), work_.outcomes, arrays.num_requests * sizeof(WalkOutcome),
                      cudaMemcpyDeviceToHost, stream_),
      kWanted);
  CheckCuda(cudaEventRecord(done_.get(), stream_), kWanted);
}

std::span<const Outcome> CudaVerifier::Finish() {
  if (is_enqueued_) CheckCuda(cudaEventSynchronize(done_.get()), kWanted);
  is_enqueued_ = false;
  logprobs_.clear();
  auto host_request = batch_.host_requests.begin();
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    const bool is_hosts =
        host_request != batch_.host_requests.end() && *host_request == static_cast<int>(i);
    if (is_hosts) ++host_request;
    if (is_hosts || requests_[i].num_scored() > 0 || requests_[i].wants_logprobs()) {
      VerifyOnHost(i);
    } else {
      ReadOutcome(i);
    }
  }
  return std::span(outcomes_).first(requests_.size());
}

void CudaVerifier::ReadOutcome(std::size_t i) {
  Outcome& outcome = outcomes_[i];
  outcome.Clear();
  outcome.prompt_logprobs.begin = logprobs_.size();
  const SampleRule& rule = batch_.rules[i];
  if (rule.samples == 0) return;
  const WalkOutcome& walk = Parts(results_.data()).Take<WalkOutcome>(i + 1)[i];
  Verdict& verdict = outcome.verdict;
  const DraftTree& draft = *requests_[i].draft;
  for (int node = walk.last_node; node != kDraftRoot; node = draft.parents[node]) {
    verdict.accepted_nodes.push_back(node);
  }
  std::ranges::reverse(verdict.accepted_nodes);
  for (int node : verdict.accepted_nodes) verdict.tokens.push_back(draft.tokens[node]);
  if (walk.token >= 0) verdict.tokens.push_back(walk.token);
  if (walk.status > 0) outcome.error = batch_.failure(walk.status);
  if (walk.status < 0) {
    outcome.is_corrupted = true;
    outcome.error = walk.status == kWalkBroken + kRowEmpty
                        ? kNothingToSample
                        : BrokenLogitMessage(walk.broken_token, walk.broken_logit);
  }
}

void CudaVerifier::VerifyOnHost(std::size_t i) {
  const int num_rows = requests_[i].num_rows();
  const std::vector<float> rows = DownloadRows(batch_.rules[i].first_row, num_rows);
  num_host_verified_rows_ += num_rows;
  VerifyRequest(requests_[i], {rows.data(), limits_.vocab_size, limits_.vocab_size}, scratch_,
                outcomes_[i], logprobs_);
}

void CudaVerifier::Top(ConstRows logits, int count, std::span<TopToken> out) {
  logits_ = {logits.data, DType::kFloat32, logits.stride};
  const std::vector<float> rows = DownloadRows(0, logits.rows);
  HostVerifier({}).Top({rows.data(), logits.rows, logits.cols}, count, out);
}

std::vector<float> CudaVerifier::DownloadRows(int first_row, int num_rows) {
  const std::size_t row_size = limits_.vocab_size;
  const std::size_t row_bytes = row_size * SizeOf(logits_.dtype);
  host_rows_.Grow(num_rows * row_bytes);
  const auto* const from = static_cast<const std::byte*>(logits_.data);
  for (int i = 0; i < num_rows; ++i) {
    const std::int64_t begin = (first_row + i) * logits_.stride;
    CheckCuda(cudaMemcpyAsync(host_rows_.data() + i * row_bytes,
                              from + begin * static_cast<std::int64_t>(SizeOf(logits_.dtype)),
                              row_bytes, cudaMemcpyDeviceToHost, stream_),
              kWanted);
  }
  CheckCuda(cudaStreamSynchronize(stream_), kWanted);
  std::vector<float> rows(num_rows * row_size);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = ToFloat(logits_.dtype, host_rows_.data(), i);
  }
  return rows;
}

}  // namespace forerun::cuda
