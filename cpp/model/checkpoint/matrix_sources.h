// What a matrix is packed of.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_MATRIX_SOURCES_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_MATRIX_SOURCES_H_

#include <memory>
#include <span>
#include <vector>

#include "cpp/model/checkpoint/stored_integers.h"
#include "cpp/ops/ops.h"
#include "forerun/types.h"

namespace forerun {

// Matrices that are stacked by outputs. Floats are borrowed; integers are read and stay in their
// own format, or become floats if there is none.
class MatrixSources {
 public:
  // Without `keeps_integers` they are unpacked, and packed as floats are.
  MatrixSources(int num_inputs, WeightFormat of_floats, bool keeps_integers, Ops& ops)
      : num_inputs_(num_inputs),
        of_floats_(of_floats),
        keeps_integers_(keeps_integers),
        ops_(ops) {}

  void Add(const TensorView& floats) { sources_.emplace_back(floats, of_floats_); }
  // These rows of it. Returns whether they became floats only because there is no format for them.
  bool Add(const StoredIntegers& stored, std::span<const TokenId> rows);

  std::unique_ptr<PackedMatrix> Pack() const { return ops_.Pack(sources_); }

 private:
  const int num_inputs_;
  const WeightFormat of_floats_;
  const bool keeps_integers_;
  Ops& ops_;
  std::vector<WeightSource> sources_;
  // What sources borrow.
  std::vector<IntegerMatrix> integers_;
  std::vector<AlignedBuffer> floats_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_MATRIX_SOURCES_H_
