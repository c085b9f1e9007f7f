// Facts about the build that are not tensors, for fastrnn.build_info().
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "cells/cell_info.h"
#include "cpu/dispatch.h"

namespace {

#ifdef FASTRNN_CUDA_ARCHS
constexpr const char* cuda_archs = FASTRNN_CUDA_ARCHS;
#else
constexpr const char* cuda_archs = "";
#endif

pybind11::dict cells() {
  pybind11::dict all;
  for (int id = 0; id < static_cast<int>(fastrnn::CellId::count); ++id) {
    const fastrnn::CellInfo& info = fastrnn::cell_info(static_cast<fastrnn::CellId>(id));
    pybind11::dict facts;
    facts["gates"] = info.gates;
    facts["slots"] = info.slots;
    facts["has_c"] = info.has_c;
    facts["keeps_slots"] = info.keeps_slots;
    facts["projects"] = info.projects;
    all[info.name] = facts;
  }
  return all;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "fastrnn's compiled part; its operators are torch.ops.fastrnn";
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("cuda_archs") = cuda_archs;
  m.def("cells", &cells, "What the registry says of each cell.");
  m.def("compiled_targets", &fastrnn::compiled_targets, "CPU targets compiled in, worst first.");
  m.def("usable_targets", &fastrnn::usable_targets, "CPU targets that this processor can run.");
  m.def("cpu_target", [] { return fastrnn::target().name; }, "The CPU target in use.");
}
