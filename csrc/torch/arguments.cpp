#include "torch/arguments.h"

#include <atomic>
#include <mutex>
#include <optional>
#include <string>

#include "cpu/plugin.h"

namespace fastrnn {
namespace {

void check(const Tensor& t, const char* name, const Sizes& sizes, const Tensor& like) {
  FASTRNN_CHECK_VALUE(t.has_sizes(sizes), "fastrnn: ", name, " must have the shape ", sizes, ", got ",
                      t.sizes());
  FASTRNN_CHECK_VALUE(t.dtype() == like.dtype(), "fastrnn: ", name, " must be ", like.dtype(),
                      " as the input is, got ", t.dtype());
  FASTRNN_CHECK_VALUE(t.device() == like.device(), "fastrnn: ", name, " must be on ", like.device(),
                      " as the input is, got ", t.device());
}

void check_batch_sizes(const LayerTensors& layer) {
  const Tensor& sizes = layer.batch_sizes;
  FASTRNN_CHECK_VALUE(sizes.dim() == 1 && sizes.dtype() == Dtype::int64 && sizes.is_cpu(),
                      "fastrnn: batch_sizes must be a 1-D int64 tensor on the CPU");
  FASTRNN_CHECK(layer.T > 0, "Expected sequence length to be larger than 0 in RNN");
  const int64_t* size = sizes.data<int64_t>();
  int64_t sum = 0;
  for (int64_t t = 0; t < layer.T; ++t) {
    FASTRNN_CHECK_VALUE(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]),
                        "fastrnn: batch_sizes must be positive and never increase");
    FASTRNN_CHECK_VALUE(size[t] <= layer.rows - sum, "fastrnn: batch_sizes sum to more than the input's ",
                        layer.rows, " rows");
    sum += size[t];
  }
  FASTRNN_CHECK_VALUE(sum == layer.rows, "fastrnn: batch_sizes sum to ", sum, " but the input has ",
                      layer.rows, " rows");
}

// Only where it costs nothing: on a GPU they would have to be waited for.
void check_lengths(const LayerTensors& layer) {
  const int64_t* lengths = layer.lengths.data<int64_t>();
  for (int64_t b = 0; b < layer.B; ++b) {
    FASTRNN_CHECK_VALUE(0 <= lengths[b] && lengths[b] <= layer.T, "lengths should be from 0 to ", layer.T,
                        ", the number of steps, got ", lengths[b], " in row ", b);
  }
}

}  // namespace

LayerTensors LayerTensors::with_same_weights() const {
  LayerTensors same;
  same.id = id;
  same.cell = cell;
  same.I = I;
  same.H = H;
  same.P = P;
  same.w_ih = w_ih.borrow();
  same.w_hh = w_hh.borrow();
  same.b_ih = b_ih.borrow();
  same.b_hh = b_hh.borrow();
  same.w_hr = w_hr.borrow();
  same.unit_weights = unit_weights.borrow();
  return same;
}

namespace {

// Of cells loaded since, whose entries are complete when the count tells of them.
std::atomic<int> loaded_count = 0;
std::mutex loading;

std::optional<CellId> find(std::string_view name) {
  const int all = static_cast<int>(CellId::count) + loaded_count.load(std::memory_order_acquire);
  for (int id = 0; id < all; ++id) {
    if (name == cell_info(static_cast<CellId>(id)).name) return static_cast<CellId>(id);
  }
  return std::nullopt;
}

}  // namespace

CellId find_cell(std::string_view name) {
  if (const auto id = find(name)) return *id;
  fail<std::invalid_argument>("fastrnn: there is no cell named '", name, "'");
}

void load_cell(std::string_view name, int64_t address) {
  const std::lock_guard lock(loading);
  if (find(name)) return;
  FASTRNN_CHECK_VALUE(address != 0, "fastrnn: this build has no cell named '", name, "'");
  const auto& plugin = *reinterpret_cast<const PluginCell*>(address);
  FASTRNN_CHECK_VALUE(
      plugin.layout == PluginCell::current_layout && plugin.arguments_size == plugin_arguments_size,
      "fastrnn: ", name, " was compiled with the headers of another fastrnn");
  const int count = loaded_count.load(std::memory_order_relaxed);
  FASTRNN_CHECK_VALUE(count < max_loaded_cells, "fastrnn: this process has loaded ", int64_t{count},
                      " cells, which is the most; start another");
  // Kept for the life of the process, as operators may be running the cell.
  loaded_cells[count] = new CellInfo{(new std::string(name))->c_str(),
                                     plugin.gates,
                                     plugin.slots,
                                     plugin.x_slot,
                                     plugin.h_slot,
                                     plugin.own_states > 0,
                                     plugin.keeps_slots != 0,
                                     /*projects=*/false,
                                     plugin.own_states,
                                     plugin.unit_weights,
                                     plugin.step_inputs,
                                     plugin.functions};
  loaded_count.store(count + 1, std::memory_order_release);
}

LayerTensors check_inputs(std::string_view cell, const Tensor& x, const Tensor& h0,
                          const OptionalTensor& c0, const OptionalTensor& batch_sizes,
                          const OptionalTensor& lengths, const OptionalTensor& reset, int64_t H,
                          int64_t P) {
  LayerTensors layer;
  layer.id = find_cell(cell);
  layer.cell = &cell_info(layer.id);
  const CellInfo& info = *layer.cell;
  layer.H = H;
  layer.P = P;

  FASTRNN_CHECK_VALUE(x.dim() == 3 || x.dim() == 2, "fastrnn: the input must have 2 or 3 dimensions, got ",
                      x.dim());
  layer.leading = Sizes(x.sizes().first(static_cast<size_t>(x.dim() - 1)));
  layer.I = x.size(-1);
  layer.rows = layer.leading.numel();
  if (batch_sizes.defined()) layer.batch_sizes = batch_sizes.contiguous();
  if (layer.batch_sizes.defined()) {
    FASTRNN_CHECK_VALUE(x.dim() == 2, "fastrnn: a packed input must have 2 dimensions, got ", x.dim());
    layer.T = layer.batch_sizes.numel();
    check_batch_sizes(layer);
    layer.B = layer.batch_sizes.data<int64_t>()[0];
  } else {
    layer.T = x.dim() == 3 ? x.size(0) : 1;
    layer.B = x.size(-2);
    FASTRNN_CHECK(layer.T > 0, "Expected sequence length to be larger than 0 in RNN");
  }
  FASTRNN_CHECK_VALUE(layer.I > 0 && layer.H > 0 && layer.P > 0, "fastrnn: sizes must be positive");
  check(h0, "h0", {layer.B, layer.P}, x);
  FASTRNN_CHECK_VALUE(c0.defined() == info.has_c, "fastrnn: ", info.name,
                      info.has_c ? " needs c0" : " has no c0");
  if (c0.defined()) check(c0, "c0", {layer.B, layer.C()}, x);

  layer.lengths = lengths.borrow();
  if (layer.lengths.defined()) {
    FASTRNN_CHECK_VALUE(!layer.batch_sizes.defined(),
                        "fastrnn: lengths and batch_sizes exclude each other");
    FASTRNN_CHECK_VALUE(layer.lengths.dtype() == Dtype::int64 && layer.lengths.device() == x.device() &&
                            layer.lengths.dim() == 1 && layer.lengths.size(0) == layer.B,
                        "fastrnn: lengths must be int64 of shape [", layer.B, "] on ", x.device());
    layer.lengths = layer.lengths.contiguous();
    if (x.is_cpu()) check_lengths(layer);
  }
  layer.reset = reset.borrow();
  if (layer.reset.defined()) {
    FASTRNN_CHECK_VALUE(layer.reset.dtype() == Dtype::boolean && layer.reset.device() == x.device() &&
                            layer.reset.has_sizes(layer.leading),
                        "fastrnn: reset must be bool of shape ", layer.leading, " on ", x.device());
    layer.reset = layer.reset.contiguous();
  }

  layer.x = x.stride(-1) == 1 || layer.I == 1 ? x.borrow() : x.contiguous();
  layer.h0 = h0.contiguous();
  if (c0.defined()) layer.c0 = c0.contiguous();
  return layer;
}

LayerTensors check_layer(std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                         const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                         const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& reset) {
  const CellInfo& info = cell_info(find_cell(cell));
  FASTRNN_CHECK_VALUE(w_ih.dim() == 2 && w_ih.size(0) % info.gates == 0,
                      "fastrnn: w_ih must have the shape [", info.gates,
                      " * hidden_size, input_size], got ", w_ih.sizes());
  FASTRNN_CHECK_VALUE(!w_hr.defined() || info.projects, "fastrnn: ", info.name, " has no projection");
  FASTRNN_CHECK_VALUE(!w_hr.defined() || w_hr.dim() == 2, "fastrnn: w_hr must have 2 dimensions");
  const int64_t H = w_ih.size(0) / info.gates, P = w_hr.defined() ? w_hr.size(0) : H;
  FASTRNN_CHECK_VALUE(x.dim() == 3 || x.dim() == 2, "fastrnn: the input must have 2 or 3 dimensions, got ",
                      x.dim());
  const int64_t G = info.gates * H;
  check(w_ih, "w_ih", {G, x.size(-1)}, x);
  check(w_hh, "w_hh", {G, P}, x);
  if (w_hr.defined()) check(w_hr, "w_hr", {P, H}, x);

  LayerTensors layer = check_inputs(cell, x, h0, c0, batch_sizes, lengths, reset, H, P);
  check_biases(layer, b_ih, b_hh);
  layer.w_ih = w_ih.contiguous();
  layer.w_hh = w_hh.contiguous();
  if (w_hr.defined()) layer.w_hr = w_hr.contiguous();
  return layer;
}

void check_biases(LayerTensors& layer, const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  FASTRNN_CHECK_VALUE(b_ih.defined() == b_hh.defined(),
                      "fastrnn: b_ih and b_hh come together or not at all");
  if (!b_ih.defined()) return;
  check(b_ih, "b_ih", {layer.cell->gates * layer.H}, layer.x);
  check(b_hh, "b_hh", {layer.cell->gates * layer.H}, layer.x);
  layer.b_ih = b_ih.contiguous();
  layer.b_hh = b_hh.contiguous();
}

void check_given(LayerTensors& layer, const OptionalTensor& unit_weights,
                 const OptionalTensor& step_inputs) {
  const CellInfo& info = *layer.cell;
  FASTRNN_CHECK_VALUE(unit_weights.defined() == (info.unit_weights > 0), "fastrnn: ", info.name,
                      info.unit_weights > 0 ? " needs" : " has no", " unit_weights");
  FASTRNN_CHECK_VALUE(step_inputs.defined() == (info.step_inputs > 0), "fastrnn: ", info.name,
                      info.step_inputs > 0 ? " needs" : " has no", " step_inputs");
  if (unit_weights.defined()) {
    check(unit_weights, "unit_weights", {info.unit_weights * layer.H}, layer.x);
    layer.unit_weights = unit_weights.contiguous();
  }
  if (step_inputs.defined()) {
    check(step_inputs, "step_inputs", layer.sizes(info.step_inputs * layer.H), layer.x);
    layer.step_inputs = step_inputs.stride(-1) == 1 ? step_inputs.borrow() : step_inputs.contiguous();
  }
}

ForwardResults allocate_results(const LayerTensors& layer, int64_t keep) {
  const CellInfo& info = *layer.cell;
  const auto make = [&](const Sizes& sizes) { return empty(sizes, layer.x.dtype(), layer.x.device()); };
  const auto none = [&] { return make({0}); };
  ForwardResults out;
  out.y = make(layer.sizes(layer.P));
  out.h_n = make({layer.B, layer.P});
  out.c_n = info.has_c ? make({layer.B, layer.C()}) : none();
  out.c = info.has_c && keep >= keep_c ? make(layer.sizes(layer.C())) : none();
  out.slots = info.keeps_slots && keep >= keep_slots ? make(layer.sizes(info.slots * layer.H)) : none();
  return out;
}

BackwardInputs check_backward(const LayerTensors& layer, const OptionalTensor& dy,
                              const OptionalTensor& dh_n, const OptionalTensor& dc_n,
                              const OptionalTensor& dc, const Tensor& y, const Tensor& c,
                              const Tensor& slots) {
  const CellInfo& info = *layer.cell;
  const auto gradient = [&](const OptionalTensor& t, const Sizes& sizes, const char* name) {
    if (!t.defined()) return Tensor();
    check(t, name, sizes, layer.x);
    return t.contiguous();
  };
  const auto kept = [&](const Tensor& t, int64_t width, const char* name) {
    FASTRNN_CHECK_VALUE(
        t.numel() == layer.rows * width && t.dtype() == layer.x.dtype() && t.device() == layer.x.device(),
        "fastrnn: ", name, " must be what forward kept for the same arguments");
    return t.contiguous().view({layer.rows, width});
  };
  BackwardInputs in;
  in.dy = gradient(dy, layer.sizes(layer.P), "dy");
  in.dh_n = gradient(dh_n, {layer.B, layer.P}, "dh_n");
  in.y = kept(y, layer.P, "y");
  if (info.has_c) {
    in.dc_n = gradient(dc_n, {layer.B, layer.C()}, "dc_n");
    in.dc = gradient(dc, layer.sizes(layer.C()), "dc");
    FASTRNN_CHECK_VALUE(c.numel() > 0 || layer.rows == 0,
                        "fastrnn: backward needs the c of every step; call forward with keep >= 1");
    in.c = kept(c, layer.C(), "c");
  }
  if (info.keeps_slots && slots.numel() > 0) in.slots = kept(slots, info.slots * layer.H, "slots");
  return in;
}

LayerGradients allocate_gradients(const LayerTensors& layer, bool needs_inputs, bool needs_weights) {
  const auto like = [&](const Tensor& t, bool needed = true) {
    return empty(t.defined() && needed ? Sizes(t.sizes()) : Sizes{0}, layer.x.dtype(), layer.x.device());
  };
  LayerGradients out;
  out.dx = like(layer.x, needs_inputs);
  out.dh0 = like(layer.h0);
  out.dc0 = like(layer.c0);
  out.dw_ih = like(layer.w_ih, needs_weights);
  out.dw_hh = like(layer.w_hh, needs_weights);
  out.db_ih = like(layer.b_ih, needs_weights);
  out.db_hh = like(layer.b_hh, needs_weights);
  out.dw_hr = like(layer.w_hr, needs_weights);
  out.d_unit_weights = like(layer.unit_weights, needs_weights);
  out.d_step_inputs = like(layer.step_inputs, needs_inputs);
  return out;
}

}  // namespace fastrnn
