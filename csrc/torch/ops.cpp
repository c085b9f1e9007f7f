// What the library computes: one layer in one direction over a whole sequence, forward and backward.
//
// T steps, B sequences, I inputs, H hidden units, P the size of h (H, or w_hr's rows), G gates and
// S slots of the cell (cells/cell.h). `rows` is the first dimension, or the first two, of x: a padded
// batch is [T, B, I]; with batch_sizes (int64 [T], on the CPU, never increasing) x is packed, [rows, I],
// and so is every per-step tensor; a lone [B, I] is one step.
//
//   cell         a name in cells/registry.h
//   h0 [B, P], c0 [B, H]                      initial state; c0 for cells with a second state
//   w_ih [G*H, I], w_hh [G*H, P], b_ih, b_hh [G*H], w_hr [P, H]
//   batch_sizes  see above
//   lengths      int64 [B] on x's device: sequence b ends after lengths[b] steps; its output is zero
//                beyond, its state that of its own end, and what x holds there, NaN too, makes no
//                difference. From 0 to T: checked on a CPU; on a GPU, where that would wait for it,
//                others count as the nearest. Never together with batch_sizes.
//   reset        bool, of x's leading dimensions: the state is zero before this step. In a reverse
//                direction "before" is in the order of computation.
//   reverse      the last step is computed first
//   keep         what forward keeps for backward: 0 nothing, 1 c of every step, 2 c and the slots
//
// forward returns y [.., P], h_n [B, P], c_n [B, H], c [.., H], slots [.., S*H], where what the cell
// does not have or was not asked for has no elements. backward takes gradients of the first four
// (any may be absent) and what forward kept; given no slots it recomputes them. It returns gradients in
// the order of their tensors, those not asked for by `needs` ([x and step_inputs, weights]) and those of
// absent tensors without elements. Neither op keeps or changes its inputs.
//
// precision: the least exact products of float32 allowed on a CPU (Precision in torch/cpu_kernels.h); on a
// GPU anything but 0 allows TF32.
//
// prepack packs a layer's matrices for this process's kernels, as `weights` says: own (the dtype they
// have), bfloat16 (for products of bfloat16) or int8 (for products of bytes, with a scale for each row).
// forward_prepacked is forward with them; it has no backward, and keep is at most 1.
//
// stream is forward_prepacked of a stack of layers in one direction, whose size of h (P) is `size` in all:
// x [B, I] or [T, B, I] -> y. It reads the state from one of two copies in `state` and writes it into the
// other, which turn 1 has exchanged; each is h [layers, B, P] and then c [layers, B, H] for cells with a
// second state. biases are b_ih and b_hh of each layer, or none.
//
// A cell with weights per unit takes unit_weights [W*H], one with inputs per step step_inputs [.., E*H];
// c0, c_n and c have K*H numbers for K private states.
//
// cells and cpu_build tell, as lines of words, what the registry says of each cell, and how this library
// was built and what it runs on. load_cell adds a cell that was compiled by itself, from the address of its
// PluginCell (cpu/plugin.h), under a name, and tells the same of it; of a generated cell that the registry
// has, the address is 0.
//
// cuda_driver names the driver that would compute a layer of x's dtype on its device, and says why;
// cuda_drivers names all. A build without CUDA has no implementation of these two.
#include "cells/cell_info.h"
#include "cpu/dispatch.h"
#include "torch/cpu_ops.h"
#include "torch/schemas.h"
#include "torch/stable/library.h"

namespace fastrnn {
namespace {

// A line: the cell's name, then gates, slots, has_c, keeps_slots, projects, own_states, unit_weights and
// step_inputs.
std::string facts_of(const CellInfo& info) {
  std::string line = info.name;
  for (int fact : {info.gates, info.slots, int{info.has_c}, int{info.keeps_slots}, int{info.projects},
                   info.own_states, info.unit_weights, info.step_inputs}) {
    line += " " + std::to_string(fact);
  }
  return line + "\n";
}

std::string cells() {
  std::string lines;
  for (int id = 0; id < written_cells; ++id) {
    lines += facts_of(cell_info(static_cast<CellId>(id)));
  }
  return lines;
}

// Gates, slots, .. of the cell, as cells() has them.
std::string load(std::string_view name, int64_t address) {
  load_cell(name, address);
  return facts_of(cell_info(find_cell(name)));
}

// A line for each fact: its name, then its words.
std::string cpu_build() {
  std::string lines = "compiler " __VERSION__ "\ntorch " + std::to_string(TORCH_VERSION_MAJOR) + "." +
                      std::to_string(TORCH_VERSION_MINOR) + "\ncompiled_targets";
  for (const std::string& name : compiled_targets()) lines += " " + name;
  lines += "\nusable_targets";
  for (const std::string& name : usable_targets()) lines += " " + name;
  return lines;
}

std::string cpu_target() { return target().name; }

const bool registered [[maybe_unused]] = [] {
  Library ops = Library::definitions();
  ops.define(forward_schema);
  ops.define(backward_schema);
  ops.define(prepack_schema);
  ops.define(forward_prepacked_schema);
  ops.define(
      "stream(str cell, Tensor x, Tensor(a!) state, int turn, Tensor[] panels, Tensor[] biases, "
      "int hidden_size, int size, str weights, int precision=0) -> Tensor");
  ops.define("load_cell(str name, int address) -> str");
  ops.define("cells() -> str");
  ops.define("cpu_build() -> str");
  ops.define("cpu_target() -> str");
  ops.define(
      "cuda_driver(Tensor x, str cell, int T, int B, int H, bool projects, bool backward, "
      "int precision=0) "
      "-> (str name, str reason)");
  ops.define("cuda_build() -> str");

  Library cpu = Library::implementations("CPU");
  cpu.implement<forward>("forward");
  cpu.implement<backward>("backward");
  cpu.implement<prepack>("prepack");
  cpu.implement<forward_prepacked>("forward_prepacked");
  cpu.implement<stream>("stream");

  Library all = Library::implementations("CompositeExplicitAutograd");
  all.implement<load>("load_cell");
  all.implement<cells>("cells");
  all.implement<cpu_build>("cpu_build");
  all.implement<cpu_target>("cpu_target");
  return true;
}();

}  // namespace
}  // namespace fastrnn
