// The activation functions of MLPs and gates. Kernels include this header, so it has no functions.
#ifndef FORERUN_CPP_OPS_ACTIVATION_H_
#define FORERUN_CPP_OPS_ACTIVATION_H_

namespace forerun {

enum class Activation { kSilu, kGeluTanh, kGelu, kSigmoid };

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_ACTIVATION_H_
