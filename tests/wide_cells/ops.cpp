// torch.ops.fastrnn_wide: the CPU ops of csrc/torch over the cells of registry.h in this folder.
#include "torch/cpu_ops.h"
#include "torch/schemas.h"
#include "torch/stable/library.h"

namespace {

using fastrnn::Library;

const bool registered [[maybe_unused]] = [] {
  Library ops = Library::definitions("fastrnn_wide");
  ops.define(fastrnn::forward_schema);
  ops.define(fastrnn::backward_schema);
  ops.define(fastrnn::prepack_schema);
  ops.define(fastrnn::forward_prepacked_schema);
  Library cpu = Library::implementations("CPU", "fastrnn_wide");
  cpu.implement<fastrnn::forward>("forward");
  cpu.implement<fastrnn::backward>("backward");
  cpu.implement<fastrnn::prepack>("prepack");
  cpu.implement<fastrnn::forward_prepacked>("forward_prepacked");
  return true;
}();

}  // namespace
