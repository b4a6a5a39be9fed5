// Forward passes that a device keeps, to run them again by one launch.
#ifndef FORERUN_CPP_OPS_PASS_GRAPHS_H_
#define FORERUN_CPP_OPS_PASS_GRAPHS_H_

#include <functional>

namespace forerun {

// Of one model, whose weights and buffers outlive it and stay where they are.
class PassGraphs {
 public:
  virtual ~PassGraphs() = default;

  // As many rows as a pass of `num_rows` is filled up to, so that few passes serve all numbers of
  // rows, at most kMostPadding more. 0: such a pass is not kept.
  virtual int PaddedRows(int num_rows) const = 0;
  static constexpr int kMostPadding = 31;

  // Runs body(), or what it did for rows of the same shape. It calls operations alone, on the rows
  // of the last Ops::Begin, which had ForwardData::is_kept, and nothing but these may be different
  // from an earlier call. False: it took longer than later passes of this shape will.
  virtual bool Run(const std::function<void()>& body) = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_PASS_GRAPHS_H_
