// Matrices that a checkpoint stores as integers with scales.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_STORED_INTEGERS_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_STORED_INTEGERS_H_

#include <optional>
#include <string>

#include "cpp/model/checkpoint/integer_matrix.h"

namespace forerun {

// One matrix, borrowed from its checkpoint. Threads may read rows at the same time.
class StoredIntegers {
 public:
  virtual ~StoredIntegers() = default;

  // The format of packed weights that holds these exactly; none: there is no such format.
  virtual std::optional<WeightFormat> format() const = 0;
  // Why there is none, and what could be done about it. Empty: there is one.
  virtual std::string obstacle() const { return ""; }

  // Row `row` becomes row `output` of a matrix in that format. REQUIRES: there is one.
  virtual void ReadIntegers(int row, const IntegerMatrix& matrix, int output) const = 0;

  // out = the row's weights.
  virtual void ReadFloats(int row, float* out) const = 0;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_STORED_INTEGERS_H_
