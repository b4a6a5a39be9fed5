#include "cuda/verify/cuda_verifier.h"

#include <algorithm>
#include <cstring>

#include "cpp/sampling/logits_row.h"
#include "cpp/sampling/logprobs.h"
#include "cpp/util/check.h"
#include "cuda/check_cuda.h"
#include "cuda/use_gpu.h"
#include "cuda/verify/sample_rows.h"
#include "cuda/verify/stage_batch.h"
#include "cuda/verify/top_rows.h"

namespace forerun::cuda {
namespace {

constexpr char kWanted[] = "the verification of drafts on the GPU";

// Of what a batch has no bound for: usual ones make no buffer grow.
constexpr int kUsualEdits = 256;     // of a request: tokens with biases or penalties
constexpr int kUsualBans = 8;        // of a row
constexpr int kUsualIds = 32;        // of a request: ids whose log-probabilities are wanted
constexpr int kUsualTopTokens = 64;  // that Top finds in a row

// Of the first entries and the arrays of Stage, without rows that the host has drawn from.
std::size_t UsualBatchBytes(const VerifierLimits& limits) {
  const auto num_requests = static_cast<std::size_t>(limits.max_requests);
  const auto num_rows = static_cast<std::size_t>(limits.max_rows);
  Parts parts(nullptr);
  parts.Take<std::int32_t>(num_rows);
  parts.Take<SampleRule>(num_requests);
  parts.Take<SampleRow>(num_rows);
  parts.Take<TokenId>(num_rows);
  parts.Take<std::int32_t>(num_rows);
  parts.Take<TokenEdit>(num_requests * kUsualEdits);
  parts.Take<TokenId>(num_rows * kUsualBans);
  parts.Take<std::uint32_t>((num_requests + num_rows) * ((limits.vocab_size + 31) / 32));
  parts.Take<TokenId>(num_rows);
  parts.Take<TokenId>(num_requests * kUsualIds);
  parts.Take<const float*>(num_rows);
  return parts.num_bytes();
}

bool NeedsMass(const SampleBatch& batch) {
  const auto has_top_p = [](const SampleRule& rule) {
    return rule.samples != 0 && rule.top_p < 1.0;
  };
  const auto needs_mass = [](const SampleRow& row) { return row.needs_mass != 0; };
  return std::ranges::any_of(batch.rules, has_top_p) || std::ranges::any_of(batch.rows, needs_mass);
}

void SetBroken(std::int32_t status, TokenId token, float logit, Outcome& outcome) {
  outcome.is_corrupted = true;
  outcome.error = status == kRowEmpty ? kNothingToSample : BrokenLogitMessage(token, logit);
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
  results = parts.Take<std::byte>(MaxResultBytes(limits));
  num_bytes = parts.num_bytes();
}

CudaVerifier::Results::Results(const void* memory, int num_requests, int num_rows,
                               std::size_t num_entries) {
  Parts parts(memory);
  outcomes = parts.Take<WalkOutcome>(num_requests);
  if (num_entries > 0) {
    statuses = parts.Take<LogprobStatus>(num_rows);
    entries = parts.Take<TokenLogprob>(num_entries);
  }
  num_bytes = parts.num_bytes();
}

std::size_t CudaVerifier::MaxResultBytes(const VerifierLimits& limits) {
  const auto max_entries = static_cast<std::size_t>(limits.max_rows) * (1 + kMaxBatchLogprobs);
  return Results(nullptr, limits.max_requests, limits.max_rows, max_entries).num_bytes;
}

CudaVerifier::CudaVerifier(const VerifierLimits& limits, cudaStream_t stream)
    : limits_(limits),
      stream_(stream),
      done_([] {
        const UseGpu use;
        cudaEvent_t event = nullptr;
        CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), kWanted);
        return event;
      }()),
      batch_memory_(0),
      work_memory_(Work(nullptr, limits).num_bytes),
      staging_(0),
      result_memory_(MaxResultBytes(limits)),
      host_rows_(0),
      work_(work_memory_.data(), limits),
      top_memory_(0),
      top_tokens_(sizeof(TopToken) * limits.max_top_tokens),
      top_results_(sizeof(TopToken) * limits.max_top_tokens),
      draws_(limits, stream),
      outcomes_(limits.max_requests) {
  const UseGpu use;
  if (limits.max_requests > 0) {
    staging_.Reserve(UsualBatchBytes(limits));
    batch_memory_.Reserve(UsualBatchBytes(limits));
  } else {  // of a drafter
    UploadTopBatch();
    const std::size_t num_bytes = sizeof(TopToken) * limits.max_rows * kUsualTopTokens;
    top_tokens_.Reserve(num_bytes);
    top_results_.Reserve(num_bytes);
  }
  // Padding comes back too, and entries that no kernel writes.
  CheckCuda(cudaMemsetAsync(work_.results, 0, MaxResultBytes(limits), stream_), kWanted);
}

CudaVerifier::~CudaVerifier() {
  const UseGpu use;
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
  const UseGpu use;
  // What a step that failed has left.
  if (is_enqueued_) CheckCuda(cudaStreamSynchronize(stream_), kWanted);
  logits_ = logits;
  requests_ = requests;
  batch_.Build(requests, limits_.vocab_size);
  FORERUN_CHECK(std::ssize(batch_.rows) == num_rows, "the requests have every row of logits");
  FindFirstEntries();
  is_enqueued_ = true;
  Enqueue(Upload());
}

void CudaVerifier::FindFirstEntries() {
  num_entries_ = 0;
  first_entry_.assign(batch_.rows.size(), -1);
  for (std::size_t row = 0; row < batch_.rows.size(); ++row) {
    const std::int32_t node = batch_.rows[row].node;
    const SampleRule& rule = batch_.rules[batch_.rows[row].request];
    if (node == kHostRow || (node != kScoredRow && rule.num_top < 0)) continue;
    first_entry_[row] = static_cast<std::int32_t>(num_entries_);
    num_entries_ +=
        1 + (node == kScoredRow ? rule.num_prompt_top : rule.num_top + rule.num_logprob_ids);
  }
}

SampleArrays CudaVerifier::Upload() {
  Stager counter(nullptr, nullptr);
  counter.Add(first_entry_);
  Stage(batch_, counter);
  staging_.Grow(counter.num_bytes());
  batch_memory_.Grow(counter.num_bytes());
  Stager stager(staging_.data(), batch_memory_.data());
  device_first_entry_ = stager.Add(first_entry_);
  const SampleArrays arrays = Stage(batch_, stager);
  CheckCuda(cudaMemcpyAsync(batch_memory_.data(), staging_.data(), stager.num_bytes(),
                            cudaMemcpyHostToDevice, stream_),
            kWanted);
  return arrays;
}

void CudaVerifier::Enqueue(const SampleArrays& arrays) {
  if (arrays.num_requests == 0) return;
  CheckCuda(SampleRows(logits_, arrays, NeedsMass(batch_), work_.rows, stream_), kWanted);
  const Results results(work_.results, arrays.num_requests, arrays.num_rows, num_entries_);
  results_ = Results(result_memory_.data(), arrays.num_requests, arrays.num_rows, num_entries_);
  const WalkArrays walk = {.batch = arrays,
                           .rows = work_.rows,
                           .num_drawn_rows = static_cast<int>(batch_.drawn_rows.size()),
                           .draft_sums = work_.draft_sums,
                           .scratch = work_.walk_rows,
                           .outcomes = results.outcomes,
                           .emitted = work_.emitted};
  CheckCuda(LaunchWalk(logits_, walk, stream_), kWanted);
  if (num_entries_ > 0) {
    const LogprobArrays logprobs = {.batch = arrays,
                                    .emitted = work_.emitted,
                                    .first_entry = device_first_entry_,
                                    .statuses = results.statuses,
                                    .entries = results.entries};
    CheckCuda(LogprobRows(logits_, logprobs, work_.rows, stream_), kWanted);
  }
  CheckCuda(cudaMemcpyAsync(result_memory_.data(), work_.results, results.num_bytes,
                            cudaMemcpyDeviceToHost, stream_),
            kWanted);
  CheckCuda(cudaEventRecord(done_.get(), stream_), kWanted);
}

std::span<const Outcome> CudaVerifier::Finish() {
  const UseGpu use;
  if (is_enqueued_) CheckCuda(cudaEventSynchronize(done_.get()), kWanted);
  is_enqueued_ = false;
  logprobs_.clear();
  auto host_request = batch_.host_requests.begin();
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (host_request != batch_.host_requests.end() && *host_request == static_cast<int>(i)) {
      ++host_request;
      VerifyOnHost(i);
    } else {
      ReadOutcome(i);
    }
  }
  return std::span(outcomes_).first(requests_.size());
}

// In the order of VerifyRequest.
void CudaVerifier::ReadOutcome(std::size_t i) {
  const SampleRequest& request = requests_[i];
  const SampleRule& rule = batch_.rules[i];
  Outcome& outcome = outcomes_[i];
  outcome.Clear();
  LogprobRange& prompt = outcome.prompt_logprobs;
  prompt.begin = logprobs_.size();
  prompt.per_token = 1 + rule.num_prompt_top;
  while (prompt.num_tokens < rule.num_scored && outcome.error.empty()) {
    prompt.num_tokens +=
        AppendEntries(rule.first_row + prompt.num_tokens, prompt.per_token, outcome);
  }
  if (rule.samples != 0 && outcome.error.empty()) ReadVerdict(i, outcome);
  if (!request.wants_logprobs()) return;
  LogprobRange& emitted = outcome.logprobs;
  emitted.begin = logprobs_.size();
  emitted.per_token = request.logprob_token_ids != nullptr
                          ? 1 + static_cast<int>(request.logprob_token_ids->size())
                          : NumLogprobEntries(*request.logprobs, limits_.vocab_size);
  std::vector<TokenId>& tokens = outcome.verdict.tokens;
  while (emitted.num_tokens < std::ssize(tokens)) {
    const int row = rule.RowAfter(outcome.verdict.row(emitted.num_tokens) - 1);
    if (AppendEntries(row, emitted.per_token, outcome)) {
      ++emitted.num_tokens;
    } else {
      tokens.resize(emitted.num_tokens);
    }
  }
}

void CudaVerifier::ReadVerdict(std::size_t i, Outcome& outcome) const {
  const WalkOutcome& walk = results_.outcomes[i];
  const DraftTree& draft = *requests_[i].draft;
  Verdict& verdict = outcome.verdict;
  for (int node = walk.last_node; node != kDraftRoot; node = draft.parents[node]) {
    verdict.accepted_nodes.push_back(node);
  }
  std::ranges::reverse(verdict.accepted_nodes);
  for (int node : verdict.accepted_nodes) verdict.tokens.push_back(draft.tokens[node]);
  if (walk.token >= 0) verdict.tokens.push_back(walk.token);
  if (walk.status > 0) outcome.error = batch_.failure(walk.status);
  if (walk.status < 0) {
    SetBroken(walk.status - kWalkBroken, walk.broken_token, walk.broken_logit, outcome);
  }
}

// False if the row has none, which becomes the outcome's error.
bool CudaVerifier::AppendEntries(int row, int per_token, Outcome& outcome) {
  const LogprobStatus& status = results_.statuses[row];
  if (status.status != kRowOk) {
    SetBroken(status.status, status.broken_token, status.broken_logit, outcome);
    return false;
  }
  const TokenLogprob* const entries = results_.entries + first_entry_[row];
  logprobs_.insert(logprobs_.end(), entries, entries + per_token);
  return true;
}

void CudaVerifier::VerifyOnHost(std::size_t i) {
  const int num_rows = requests_[i].num_rows();
  const std::vector<float> rows = DownloadRows(batch_.rules[i].first_row, num_rows);
  num_host_verified_rows_ += num_rows;
  SampleRequest request = requests_[i];
  DraftTree draft;
  if (request.draft != nullptr && request.draft->device_weights != nullptr) {
    draft = *request.draft;
    draft.weights.resize(draft.row_after.size() * limits_.vocab_size);
    const std::size_t num_bytes = draft.weights.size() * sizeof(float);
    CheckCuda(
        cudaMemcpy(draft.weights.data(), draft.device_weights, num_bytes, cudaMemcpyDeviceToHost),
        kWanted);
    draft.device_weights = nullptr;
    request.draft = &draft;
  }
  VerifyRequest(request, {rows.data(), limits_.vocab_size, limits_.vocab_size}, scratch_,
                outcomes_[i], logprobs_);
}

const TopToken* CudaVerifier::StartTop(ConstRows logits, int count, std::size_t begin) {
  FORERUN_CHECK(logits.rows == 0 || logits.cols == limits_.vocab_size, "logits: [rows, vocab]");
  return StartTop({logits.data, DType::kFloat32, logits.stride}, logits.rows, count, begin);
}

const TopToken* CudaVerifier::StartTop(const DeviceLogits& logits, int num_rows, int count,
                                       std::size_t begin) {
  FORERUN_CHECK(num_rows <= limits_.max_rows, "more rows than the verifier's limit");
  const std::size_t end = begin + static_cast<std::size_t>(num_rows) * count;
  FORERUN_CHECK(begin == 0 || end <= static_cast<std::size_t>(limits_.max_top_tokens),
                "more top tokens than the verifier's limit");
  const UseGpu use;
  if (top_batch_.num_rows == 0) UploadTopBatch();
  if (begin == 0) top_tokens_.Grow(sizeof(TopToken) * end);
  auto* const found = Parts(top_tokens_.data()).Take<TopToken>(end) + begin;
  SampleArrays arrays = top_batch_;
  arrays.num_rows = num_rows;
  if (begin < end) CheckCuda(TopRows(logits, arrays, count, work_.rows, found, stream_), kWanted);
  return found;
}

const float* CudaVerifier::StartDraws(ConstRows logits, std::span<const Draw> draws,
                                      const TokenId* ids, std::size_t begin) {
  const UseGpu use;
  auto* const found = reinterpret_cast<TopToken*>(top_tokens_.data()) + begin;
  return draws_.Start({logits.data, DType::kFloat32, logits.stride}, draws, ids, work_.rows, found);
}

void CudaVerifier::FinishTop(std::span<TopToken> out) {
  if (out.empty()) return;
  const UseGpu use;
  top_results_.Grow(out.size_bytes());
  CheckCuda(cudaMemcpyAsync(top_results_.data(), top_tokens_.data(), out.size_bytes(),
                            cudaMemcpyDeviceToHost, stream_),
            kWanted);
  CheckCuda(cudaStreamSynchronize(stream_), kWanted);
  std::memcpy(out.data(), top_results_.data(), out.size_bytes());
}

// Once, at the first call of StartTop.
void CudaVerifier::UploadTopBatch() {
  const SampleBatch batch = TopBatch(limits_.max_rows, limits_.vocab_size);
  Stager counter(nullptr, nullptr);
  Stage(batch, counter);
  const PinnedBuffer staging(counter.num_bytes());
  top_memory_.Grow(counter.num_bytes());
  Stager stager(staging.data(), top_memory_.data());
  const SampleArrays arrays = Stage(batch, stager);
  CheckCuda(cudaMemcpyAsync(top_memory_.data(), staging.data(), stager.num_bytes(),
                            cudaMemcpyHostToDevice, stream_),
            kWanted);
  CheckCuda(cudaStreamSynchronize(stream_), kWanted);
  top_batch_ = arrays;
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
