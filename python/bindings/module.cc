#include "python/bindings/register.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The native engine. Use the classes of the package forerun instead.";
  forerun::RegisterErrors(module);
  forerun::RegisterOptions(module);
  forerun::RegisterMetrics(module);
  forerun::RegisterTurns(module);
  forerun::RegisterEngine(module);
  forerun::RegisterLoop(module);
  forerun::RegisterFiles(module);
  forerun::RegisterKernels(module);
#ifdef FORERUN_BIND_MODEL
  forerun::RegisterModel(module);
#endif
}
