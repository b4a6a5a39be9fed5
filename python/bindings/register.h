// One function per bound group of classes; module.cc calls them in order.
#ifndef FORERUN_PYTHON_BINDINGS_REGISTER_H_
#define FORERUN_PYTHON_BINDINGS_REGISTER_H_

#include <pybind11/pybind11.h>

namespace forerun {

void RegisterErrors(pybind11::module_& module);
void RegisterOptions(pybind11::module_& module);
void RegisterMetrics(pybind11::module_& module);
void RegisterTurns(pybind11::module_& module);
void RegisterEngine(pybind11::module_& module);
void RegisterLoop(pybind11::module_& module);
void RegisterFiles(pybind11::module_& module);
void RegisterKernels(pybind11::module_& module);
void RegisterModel(pybind11::module_& module);

}  // namespace forerun

#endif  // FORERUN_PYTHON_BINDINGS_REGISTER_H_
