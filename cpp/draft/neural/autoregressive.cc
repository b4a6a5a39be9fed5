#include "cpp/draft/neural/autoregressive.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "cpp/kv/slot_map.h"
#include "cpp/sampling/draft_sampling.h"
#include "cpp/sampling/logits_row.h"
#include "cpp/util/check.h"

namespace forerun {
AutoregressiveDrafter::AutoregressiveDrafter(std::unique_ptr<DraftNetwork> network,
                                             std::unique_ptr<Verifier> verifier,
                                             const FeatureStore* features,
                                             const AutoregressiveSetting& setting)
    : network_(std::move(network)),
      verifier_(std::move(verifier)),
      features_(features),
      setting_(setting),
      synced_(setting.num_blocks) {
  FORERUN_CHECK(setting_.width >= 1 && setting_.max_depth >= 1 && setting_.max_rows >= 1);
  FORERUN_CHECK(features_ != nullptr || network_->first_slot() == 0, "a network without features");
  tokens_.reserve(setting_.max_rows);
  logits_rows_.reserve(setting_.max_rows);
  sources_.reserve(setting_.max_rows);
  const std::span<const TokenId> ids = network_->target_ids();
  if (setting_.memory != &HostMemory() && !ids.empty()) {
    device_ids_ = AlignedBuffer(*setting_.memory, ids.size_bytes());
    setting_.memory->Upload(device_ids_.as<TokenId>(), ids.data(), ids.size_bytes());
  }
}

std::optional<ModelWork> AutoregressiveDrafter::EstimateModelWork(
    const DraftRequest& request) const {
  // A slot for the last known token and for each draft token that others follow.
  ModelWork work{.num_slots = network_->has_kv() ? request.max_tokens : 0};
  EachMissingRun(request, [&](int begin, int end) { work.num_catch_up_tokens += end - begin; });
  return work;
}

DraftingReport AutoregressiveDrafter::Prepare(std::span<const DraftRequest> requests) {
  if (jobs_.size() < requests.size()) jobs_.resize(requests.size());
  num_jobs_ = 0;
  request_reports_.assign(requests.size(), {});
  report_ = {.requests = request_reports_};
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const DraftRequest& request = requests[i];
    if (!request.may_run_model || std::ssize(request.tokens) <= network_->first_slot()) continue;
    request_reports_[i].ran_model = true;
    Job& job = jobs_[num_jobs_++];
    job.request = &request;
    job.tree.Clear();
    // The prior draft may have more nodes as the text grows.
    if (request.prior_draft != nullptr) job.tree.Reserve(MaxOwnNodes() + request.max_tokens);
    job.sampled.Clear();
    job.is_sampled = setting_.is_sampled && request.rule.temperature > 0.0;
    job.is_over = false;
  }
  if (num_jobs_ == 0) return report_;
  is_deferred_ = IsDeferred();
  level_outputs_.clear();
  num_deferred_ = 0;
  try {
    RunKnownTokens();
  } catch (...) {
    // It is unknown which slots were written.
    for (Job& job : std::span(jobs_).first(num_jobs_)) synced_.Forget(*job.request->table);
    throw;
  }
  const int max_depth = std::min(setting_.max_depth, network_->max_depth());
  if (is_deferred_) {
    for (int depth = 1; depth < max_depth && RunDeferredLevel(depth); ++depth) {
    }
    GrowDeferred();
    return report_;
  }
  for (int depth = 1; depth < max_depth; ++depth) {
    RunLevel(depth);
    if (logits_rows_.empty()) break;
  }
  return report_;
}

void AutoregressiveDrafter::Propose(const DraftRequest& request, DraftTree& draft) {
  const int index = FindJob(request.id);
  if (index < 0) return;
  Job& job = jobs_[index];
  if (job.is_sampled) {
    std::swap(draft, job.sampled);
  } else {
    job.tree.WriteBest(request.max_tokens, draft);
  }
}

int AutoregressiveDrafter::MaxOwnNodes() const {
  if (!setting_.shape.empty()) return setting_.shape.size();
  return setting_.width + (setting_.max_depth - 1) * setting_.width * setting_.width;
}

int AutoregressiveDrafter::FindJob(RequestId id) const {
  for (int i = 0; i < num_jobs_; ++i) {
    if (jobs_[i].request->id == id) return i;
  }
  return -1;
}

void AutoregressiveDrafter::ClearBatch() {
  tokens_.clear();
  sequences_.clear();
  logits_rows_.clear();
  sources_.clear();
}

template <typename Run>
void AutoregressiveDrafter::EachMissingRun(const DraftRequest& request, Run run) const {
  if (!network_->has_kv()) return;
  const BlockTable& table = *request.table;
  const int last = static_cast<int>(request.tokens.size()) - 1;
  EachBlock(network_->first_slot(), last, table.block_size(),
            [&](int index, int block_begin, int slot, int end) {
              const int begin = std::max(slot, block_begin + synced_.NumSynced(table, index));
              if (begin < end) run(begin, end);
            });
}

void AutoregressiveDrafter::RunKnownTokens() {
  runs_.clear();
  for (Job& job : std::span(jobs_).first(num_jobs_)) {
    const BlockTable& table = *job.request->table;
    EachMissingRun(*job.request, [&](int begin, int end) {
      // A prefix that requests share is computed for the first of them. The others' rows may be in
      // the same forward pass: a layer stores the keys and values of all rows before any attends.
      synced_.MarkSynced(table, begin, end);
      const bool continues =
          !runs_.empty() && runs_.back().job == &job && runs_.back().end == begin;
      if (continues) {
        runs_.back().end = end;
      } else {
        runs_.push_back({&job, begin, end});
      }
      report_.num_catch_up_tokens += end - begin;
    });
    // The last token's row is always run: the first draft tokens come from its logits.
    const int last = num_known(job) - 1;
    runs_.push_back({&job, last, last + 1});
    if (network_->has_kv()) synced_.MarkSynced(table, last, last + 1);
  }
  const int num_rows = report_.num_catch_up_tokens + num_jobs_;
  if (num_rows <= setting_.max_rows) return RunKnown(runs_, /*with_logits=*/true);

  // Too many rows for one forward pass, as after a long prompt: the last tokens come last.
  int num_chunk_rows = 0;
  chunk_.clear();
  for (const KnownRun& run : runs_) {
    if (run.begin == num_known(*run.job) - 1) continue;
    for (int begin = run.begin; begin < run.end;) {
      const int end = std::min(run.end, begin + setting_.max_rows - num_chunk_rows);
      chunk_.push_back({run.job, begin, end});
      num_chunk_rows += end - begin;
      begin = end;
      if (num_chunk_rows < setting_.max_rows) continue;
      RunKnown(chunk_, /*with_logits=*/false);
      chunk_.clear();
      num_chunk_rows = 0;
    }
  }
  if (!chunk_.empty()) RunKnown(chunk_, /*with_logits=*/false);
  std::erase_if(runs_, [this](const KnownRun& run) { return run.begin < num_known(*run.job) - 1; });
  RunKnown(runs_, /*with_logits=*/true);
}

void AutoregressiveDrafter::RunKnown(std::span<const KnownRun> runs, bool with_logits) {
  ClearBatch();
  for (const KnownRun& run : runs) {
    const DraftRequest& request = *run.job->request;
    const std::span<const BlockId> blocks = request.table->blocks();
    const int row_begin = static_cast<int>(tokens_.size());
    const int num_rows = run.end - run.begin;
    if (!sequences_.empty() && sequences_.back().block_table.data() == blocks.data() &&
        sequences_.back().num_context + sequences_.back().num_rows == run.begin) {
      sequences_.back().num_rows += num_rows;
    } else {
      sequences_.push_back({row_begin, num_rows, run.begin, blocks});
    }
    for (int slot = run.begin; slot < run.end; ++slot) {
      tokens_.push_back(request.tokens[slot]);
      sources_.push_back(features_ != nullptr ? features_->RowOf(blocks, slot - 1) : -1);
    }
    if (!with_logits || run.end != num_known(*run.job)) continue;
    run.job->first_output = static_cast<int>(logits_rows_.size());
    run.job->num_rows = 1;
    logits_rows_.push_back(static_cast<std::int32_t>(tokens_.size()) - 1);
  }
  ++report_.num_forwards;
  const ConstRows logits = network_->Forward({tokens_, sequences_, logits_rows_, sources_, 0});
  if (!with_logits) return;
  if (is_deferred_) return DeferLevel(/*depth=*/0, logits);
  Grow(0, logits);
}

void AutoregressiveDrafter::RunLevel(int depth) {
  ClearBatch();
  for (Job& job : std::span(jobs_).first(num_jobs_)) {
    const int before = job.first_output;
    job.num_rows = 0;
    const std::span<const int> open = job.tree.open();
    if (job.is_over || open.empty()) continue;
    const int row_begin = static_cast<int>(tokens_.size());
    job.first_output = row_begin;
    job.num_rows = network_->ignores_path() ? 1 : static_cast<int>(open.size());
    for (int i : open.first(job.num_rows)) {
      const PathTree::Node& node = job.tree.node(i);
      tokens_.push_back(node.token);
      int source = before;
      if (depth > 1 && !network_->ignores_path()) {
        source += job.tree.node(node.parent).row - job.tree.first_row_before();
      }
      sources_.push_back(source);
    }
    const std::span<const BlockId> blocks = job.request->table->blocks();
    SequenceRows rows = {row_begin, job.num_rows, num_known(job) + job.tree.first_row(), blocks};
    const bool is_chain = setting_.width == 1 && setting_.shape.is_chain();
    if (!is_chain) rows.tree = {num_known(job), job.tree.row_parents()};
    sequences_.push_back(rows);
  }
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    logits_rows_.push_back(static_cast<std::int32_t>(i));
  }
  if (tokens_.empty()) return;
  ++report_.num_forwards;
  const ConstRows logits = network_->Forward({tokens_, sequences_, logits_rows_, sources_, depth});
  Grow(depth, logits);
}

void AutoregressiveDrafter::Grow(int depth, ConstRows logits) {
  FindCandidates(depth, logits);
  for (Job& job : std::span(jobs_).first(num_jobs_)) {
    if (job.num_rows > 0) GrowJob(job, depth, logits);
  }
}

int AutoregressiveDrafter::NumRanked(const Job& job, int parent) const {
  const TreeShape& shape = setting_.shape;
  if (shape.empty()) return setting_.width;
  return shape.NumRanked(parent == kDraftRoot ? kDraftRoot : job.tree.node(parent).shape_node);
}

void AutoregressiveDrafter::FindCandidates(int depth, ConstRows logits) {
  num_ranked_ = 0;
  for (const Job& job : std::span(jobs_).first(num_jobs_)) {
    if (job.is_sampled || job.num_rows == 0) continue;
    if (depth == 0) num_ranked_ = std::max(num_ranked_, NumRanked(job, kDraftRoot));
    for (int parent : job.tree.open()) num_ranked_ = std::max(num_ranked_, NumRanked(job, parent));
  }
  candidates_.resize(static_cast<std::size_t>(logits.rows) * num_ranked_);
  int begin = 0, end = 0;  // rows of jobs that follow each other
  const auto find = [&] {
    if (begin == end) return;
    const auto first = static_cast<std::size_t>(begin) * num_ranked_;
    const auto count = static_cast<std::size_t>(end - begin) * num_ranked_;
    verifier_->Top({logits.row(begin), end - begin, logits.cols, logits.stride}, num_ranked_,
                   std::span(candidates_).subspan(first, count));
  };
  for (const Job& job : std::span(jobs_).first(num_jobs_)) {
    if (job.is_sampled || job.num_rows == 0) continue;
    if (job.first_output != end) {
      find();
      begin = job.first_output;
    }
    end = job.first_output + job.num_rows;
  }
  find();
}

void AutoregressiveDrafter::GrowJob(Job& job, int depth, ConstRows logits) {
  if (setting_.recorder != nullptr) Record(job, depth, logits);
  const int max_nodes = job.request->max_tokens;
  bool is_finite = true;
  if (job.is_sampled && is_deferred_) {
    is_finite = GrowDrawn(job, depth);
  } else if (job.is_sampled) {
    try {
      GrowSampled(job, depth, HostRow(logits, job.first_output));
    } catch (const NumericError&) {
      is_finite = false;
    }
  } else {
    // The tree's own list of open nodes changes below.
    const int num_parents = depth == 0 ? 1 : static_cast<int>(job.tree.open().size());
    for (int i = 0; i < num_parents && is_finite; ++i) {
      const int parent = depth == 0 ? kDraftRoot : job.tree.open()[i];
      is_finite = AddCandidates(job, parent, std::min(i, job.num_rows - 1));
      if (is_finite) AddPriorDraft(job, parent);
    }
  }
  if (!is_finite) {
    // The draft ends here.
    job.sampled.Clear();
    job.is_over = true;
    return;
  }
  // Where a sampled draft ends must not depend on what was drawn.
  const double least = job.is_sampled ? 0.0 : job.request->least_path_probability;
  const int width = setting_.shape.empty() ? setting_.width : max_nodes;
  job.tree.OpenNext({width, max_nodes - 1, max_nodes, least});
}

bool AutoregressiveDrafter::AddCandidates(Job& job, int parent, int i) {
  const TreeShape& shape = setting_.shape;
  const int shape_node = parent == kDraftRoot ? kDraftRoot : job.tree.node(parent).shape_node;
  const auto first = static_cast<std::size_t>(job.first_output + i) * num_ranked_;
  const auto candidates = std::span(candidates_).subspan(first, num_ranked_);
  const int num_ranked = NumRanked(job, parent);
  for (int rank = 0; rank < num_ranked && candidates[rank].token >= 0; ++rank) {
    const TokenId token = TargetId(candidates[rank].token);
    const float probability = candidates[rank].probability;
    if (shape.empty()) {
      job.tree.Add(token, parent, probability);
    } else if (const int child = shape.Child(shape_node, rank); child != kNoNode) {
      job.tree.Add(token, parent, probability, child, shape.NumRanked(child) > 0);
    }
  }
  return num_ranked == 0 || candidates[0].token >= 0;
}

void AutoregressiveDrafter::AddPriorDraft(Job& job, int parent) {
  const DraftTree* const prior = job.request->prior_draft;
  if (prior == nullptr || prior->empty()) return;
  job.tree.PathTo(parent, path_);
  int node = kDraftRoot;
  for (TokenId token : path_) {
    node = prior->Child(node, token);
    if (node == kNoNode) return;
  }
  for (int i = node + 1; i < prior->size(); ++i) {
    if (prior->parents[i] == node) {
      job.tree.AddOrRaise(prior->tokens[i], parent, prior->confidence[i]);
    }
  }
}

void AutoregressiveDrafter::GrowSampled(Job& job, int depth, std::span<const float> logits) {
  const DraftRequest& request = *job.request;
  const std::span<const float> all = InTargetIds(logits);
  const int parent = depth - 1;
  if (request.rule.acceptance_method == AcceptanceMethod::kCoupled) {
    const TokenId token =
        SampleToken(all, request.rule, request.first_output_index + depth, scratch_);
    const KeptTokens kept = KeepTokens(all, request.rule, scratch_);
    job.sampled.Append(token, parent, static_cast<float>(kept.WeightOf(token) / kept.mass));
  } else {
    // The row is filled before it is added, since logits that are not finite throw.
    target_weights_.resize(all.size());
    FillDraftRow(all, request.rule, scratch_, target_weights_);
    std::ranges::copy(target_weights_,
                      job.sampled.AddRowAfter(parent, static_cast<int>(all.size())).begin());
    AppendDrawnChild(job.sampled, parent, request.rule.seed, request.first_output_index);
  }
  if (job.sampled.size() <= depth) {
    job.is_over = true;
    return;
  }
  job.tree.Add(job.sampled.tokens.back(), parent, 1.0f);
}

std::span<const float> AutoregressiveDrafter::InTargetIds(std::span<const float> logits) {
  const std::span<const TokenId> ids = network_->target_ids();
  if (ids.empty()) return logits;
  target_logits_.assign(setting_.vocab_size, -std::numeric_limits<float>::infinity());
  for (std::size_t i = 0; i < ids.size(); ++i) target_logits_[ids[i]] = logits[i];
  return target_logits_;
}

void AutoregressiveDrafter::Record(const Job& job, int depth, ConstRows logits) {
  for (int i = 0; i < job.num_rows; ++i) {
    const std::span<const float> row = HostRow(logits, job.first_output + i);
    std::vector<TokenId> path;
    if (depth > 0) job.tree.PathTo(job.tree.open()[i], path);
    setting_.recorder->Add({job.request->id, num_known(job), std::move(path),
                            std::vector<float>(row.begin(), row.end())});
  }
}

std::span<const float> AutoregressiveDrafter::HostRow(ConstRows logits, int row) {
  const auto cols = static_cast<std::size_t>(logits.cols);
  if (setting_.memory == &HostMemory()) return {logits.row(row), cols};
  host_row_.resize(cols);
  setting_.memory->Download(host_row_.data(), logits.row(row), cols * sizeof(float));
  return host_row_;
}

}  // namespace forerun
