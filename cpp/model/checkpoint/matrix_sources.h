// What a matrix is packed of.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_MATRIX_SOURCES_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_MATRIX_SOURCES_H_

#include <memory>
#include <optional>
#include <vector>

#include "cpp/model/checkpoint/stored_integers.h"
#include "cpp/ops/ops.h"
#include "forerun/types.h"

namespace forerun {

// Matrices that are stacked by outputs, borrowed until they are packed. Integers stay in their own
// format, or become floats if there is none. Nothing is read where the Ops has the packed matrix
// already.
class MatrixSources {
 public:
  // Without `keeps_integers` they are unpacked, and packed as floats are.
  MatrixSources(int num_inputs, WeightFormat of_floats, bool keeps_integers, Ops& ops)
      : num_inputs_(num_inputs),
        of_floats_(of_floats),
        keeps_integers_(keeps_integers),
        ops_(ops) {}

  void Add(const TensorView& floats) { added_.push_back({floats, nullptr, {}}); }
  // These rows of it. Returns whether they become floats only because there is no format for them.
  bool Add(const StoredIntegers& stored, std::vector<TokenId> rows);

  // REQUIRES: called once, after all Add.
  std::unique_ptr<PackedMatrix> Pack();

 private:
  struct Added {
    TensorView floats;
    const StoredIntegers* stored = nullptr;  // null: floats
    std::vector<TokenId> rows;               // of `stored`
  };
  // Of the integers as they are stored; absent: they are unpacked, or floats.
  std::optional<WeightFormat> KeptFormat(const Added& added) const;
  std::vector<PartShape> Shapes() const;
  void Read(const Added& added);

  const int num_inputs_;
  const WeightFormat of_floats_;
  const bool keeps_integers_;
  Ops& ops_;
  std::vector<Added> added_;
  std::vector<WeightSource> sources_;
  // What sources borrow.
  std::vector<IntegerMatrix> integers_;
  std::vector<AlignedBuffer> floats_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_MATRIX_SOURCES_H_
