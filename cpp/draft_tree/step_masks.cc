#include "cpp/draft_tree/step_masks.h"

#include <algorithm>
#include <exception>

#include "cpp/util/request_error.h"

namespace forerun {

void StepMasks::Open(ConstraintBatch& batch) {
  if (std::ranges::find(open_, &batch) != open_.end()) return;
  open_.reserve(open_.size() + 1);
  batch.Begin();
  open_.push_back(&batch);
}

void StepMasks::Add(ConstraintCursor& cursor, const DraftTree& draft) {
  Open(cursor.constraint().batch());
  cursors_.push_back(&cursor);
  requests_.push_back({&cursor.constraint(), draft.tokens, draft.parents, num_rows_});
  num_rows_ += 1 + draft.size();
}

void StepMasks::Compute() {
  words_.resize(static_cast<std::size_t>(num_rows_) * words_per_row_);
  failures_.assign(num_rows_, {});
  for (std::size_t i = 0; i < open_.size(); ++i) Fill(*open_[i]);
  for (std::size_t i = 0; i < cursors_.size(); ++i) {
    const std::span<const std::string> failures = FailuresOf(requests_[i]);
    const auto first = static_cast<std::size_t>(requests_[i].first_row);
    cursors_[i]->SetMasks(
        std::span(words_).subspan(first * words_per_row_, failures.size() * words_per_row_),
        failures);
  }
  Close();
}

void StepMasks::Fill(ConstraintBatch& batch) {
  of_batch_.clear();
  for (std::size_t i = 0; i < cursors_.size(); ++i) {
    if (&requests_[i].constraint->batch() != &batch) continue;
    try {
      cursors_[i]->MoveTo({});
      of_batch_.push_back(requests_[i]);
    } catch (const HookError& error) {
      std::ranges::fill(FailuresOf(requests_[i]), error.what());
    }
  }
  if (of_batch_.empty()) return;
  try {
    batch.FillMasks({of_batch_, words_per_row_, words_, failures_});
  } catch (const std::exception& error) {
    for (const MaskRequest& request : of_batch_) {
      std::ranges::fill(FailuresOf(request), error.what());
    }
  } catch (...) {
    for (ConstraintCursor* cursor : cursors_) cursor->Invalidate();
    throw;
  }
  for (const MaskRequest& request : of_batch_) {
    for (std::string& failure : FailuresOf(request)) {
      if (!failure.empty()) failure.insert(0, kConstraintFailed);
    }
  }
}

std::span<std::string> StepMasks::FailuresOf(const MaskRequest& request) {
  return std::span(failures_).subspan(request.first_row, request.tokens.size() + 1);
}

void StepMasks::Close() noexcept {
  for (ConstraintBatch* batch : open_) batch->End();
  open_.clear();
  cursors_.clear();
  requests_.clear();
  num_rows_ = 0;
}

}  // namespace forerun
