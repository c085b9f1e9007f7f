#include "torch/arguments.h"

namespace fastrnn {
namespace {

at::Tensor or_undefined(const OptionalTensor& t) { return t.has_value() ? *t : at::Tensor(); }

void check(const at::Tensor& t, const char* name, at::IntArrayRef sizes, const at::Tensor& like) {
  TORCH_CHECK_VALUE(t.sizes() == sizes, "fastrnn: ", name, " must have the shape ", sizes, ", got ",
                    t.sizes());
  TORCH_CHECK_VALUE(t.scalar_type() == like.scalar_type(), "fastrnn: ", name, " must be ",
                    like.scalar_type(), " as the input is, got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.device() == like.device(), "fastrnn: ", name, " must be on ", like.device(),
                    " as the input is, got ", t.device());
}

void check_batch_sizes(const LayerTensors& layer) {
  const at::Tensor& sizes = layer.batch_sizes;
  TORCH_CHECK_VALUE(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.device().is_cpu(),
                    "fastrnn: batch_sizes must be a 1-D int64 tensor on the CPU");
  TORCH_CHECK(layer.T > 0, "Expected sequence length to be larger than 0 in RNN");
  const int64_t* size = sizes.const_data_ptr<int64_t>();
  int64_t sum = 0;
  for (int64_t t = 0; t < layer.T; ++t) {
    TORCH_CHECK_VALUE(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]),
                      "fastrnn: batch_sizes must be positive and never increase");
    TORCH_CHECK_VALUE(size[t] <= layer.rows - sum, "fastrnn: batch_sizes sum to more than the input's ",
                      layer.rows, " rows");
    sum += size[t];
  }
  TORCH_CHECK_VALUE(sum == layer.rows, "fastrnn: batch_sizes sum to ", sum, " but the input has ",
                    layer.rows, " rows");
}

// Only where it costs nothing: on a GPU they would have to be waited for.
void check_lengths(const LayerTensors& layer) {
  const int64_t* lengths = layer.lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < layer.B; ++b) {
    TORCH_CHECK_VALUE(0 <= lengths[b] && lengths[b] <= layer.T, "lengths should be from 0 to ", layer.T,
                      ", the number of steps, got ", lengths[b], " in row ", b);
  }
}

}  // namespace

CellId find_cell(std::string_view name) {
  for (int id = 0; id < static_cast<int>(CellId::count); ++id) {
    if (name == cell_info(static_cast<CellId>(id)).name) return static_cast<CellId>(id);
  }
  TORCH_CHECK_VALUE(false, "fastrnn: there is no cell named '", name, "'");
}

LayerTensors check_inputs(std::string_view cell, const at::Tensor& x, const at::Tensor& h0,
                          const OptionalTensor& c0, const OptionalTensor& batch_sizes,
                          const OptionalTensor& lengths, const OptionalTensor& reset, int64_t H,
                          int64_t P) {
  LayerTensors layer;
  layer.id = find_cell(cell);
  layer.cell = &cell_info(layer.id);
  const CellInfo& info = *layer.cell;
  layer.H = H;
  layer.P = P;

  TORCH_CHECK_VALUE(x.dim() == 3 || x.dim() == 2, "fastrnn: the input must have 2 or 3 dimensions, got ",
                    x.dim());
  layer.leading = x.sizes().slice(0, x.dim() - 1).vec();
  layer.I = x.size(-1);
  layer.rows = 1;
  for (int64_t n : layer.leading) layer.rows *= n;
  layer.batch_sizes = or_undefined(batch_sizes);
  if (layer.batch_sizes.defined()) {
    TORCH_CHECK_VALUE(x.dim() == 2, "fastrnn: a packed input must have 2 dimensions, got ", x.dim());
    layer.batch_sizes = layer.batch_sizes.contiguous();
    layer.T = layer.batch_sizes.numel();
    check_batch_sizes(layer);
    layer.B = layer.batch_sizes.const_data_ptr<int64_t>()[0];
  } else {
    layer.T = x.dim() == 3 ? x.size(0) : 1;
    layer.B = x.size(-2);
    TORCH_CHECK(layer.T > 0, "Expected sequence length to be larger than 0 in RNN");
  }
  TORCH_CHECK_VALUE(layer.I > 0 && layer.H > 0 && layer.P > 0, "fastrnn: sizes must be positive");
  check(h0, "h0", {layer.B, layer.P}, x);
  TORCH_CHECK_VALUE(c0.has_value() == info.has_c, "fastrnn: ", info.name,
                    info.has_c ? " needs c0" : " has no c0");
  if (c0.has_value()) check(*c0, "c0", {layer.B, layer.H}, x);

  layer.lengths = or_undefined(lengths);
  if (layer.lengths.defined()) {
    TORCH_CHECK_VALUE(!layer.batch_sizes.defined(), "fastrnn: lengths and batch_sizes exclude each other");
    TORCH_CHECK_VALUE(layer.lengths.scalar_type() == at::kLong && layer.lengths.device() == x.device() &&
                          layer.lengths.dim() == 1 && layer.lengths.size(0) == layer.B,
                      "fastrnn: lengths must be int64 of shape [", layer.B, "] on ", x.device());
    layer.lengths = layer.lengths.contiguous();
    if (x.is_cpu()) check_lengths(layer);
  }
  layer.reset = or_undefined(reset);
  if (layer.reset.defined()) {
    TORCH_CHECK_VALUE(layer.reset.scalar_type() == at::kBool && layer.reset.device() == x.device() &&
                          layer.reset.sizes() == at::IntArrayRef(layer.leading),
                      "fastrnn: reset must be bool of shape ", at::IntArrayRef(layer.leading), " on ",
                      x.device());
    layer.reset = layer.reset.contiguous();
  }

  layer.x = x.stride(-1) == 1 || layer.I == 1 ? x : x.contiguous();
  layer.h0 = h0.contiguous();
  if (c0.has_value()) layer.c0 = c0->contiguous();
  return layer;
}

LayerTensors check_layer(std::string_view cell, const at::Tensor& x, const at::Tensor& h0,
                         const OptionalTensor& c0, const at::Tensor& w_ih, const at::Tensor& w_hh,
                         const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& reset) {
  const CellInfo& info = cell_info(find_cell(cell));
  TORCH_CHECK_VALUE(w_ih.dim() == 2 && w_ih.size(0) % info.gates == 0,
                    "fastrnn: w_ih must have the shape [", info.gates, " * hidden_size, input_size], got ",
                    w_ih.sizes());
  TORCH_CHECK_VALUE(!w_hr.has_value() || info.projects, "fastrnn: ", info.name, " has no projection");
  TORCH_CHECK_VALUE(!w_hr.has_value() || w_hr->dim() == 2, "fastrnn: w_hr must have 2 dimensions");
  const int64_t H = w_ih.size(0) / info.gates, P = w_hr.has_value() ? w_hr->size(0) : H;
  TORCH_CHECK_VALUE(x.dim() == 3 || x.dim() == 2, "fastrnn: the input must have 2 or 3 dimensions, got ",
                    x.dim());
  const int64_t G = info.gates * H;
  check(w_ih, "w_ih", {G, x.size(-1)}, x);
  check(w_hh, "w_hh", {G, P}, x);
  if (w_hr.has_value()) check(*w_hr, "w_hr", {P, H}, x);

  LayerTensors layer = check_inputs(cell, x, h0, c0, batch_sizes, lengths, reset, H, P);
  check_biases(layer, b_ih, b_hh);
  layer.w_ih = w_ih.contiguous();
  layer.w_hh = w_hh.contiguous();
  if (w_hr.has_value()) layer.w_hr = w_hr->contiguous();
  return layer;
}

void check_biases(LayerTensors& layer, const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  TORCH_CHECK_VALUE(b_ih.has_value() == b_hh.has_value(),
                    "fastrnn: b_ih and b_hh come together or not at all");
  if (!b_ih.has_value()) return;
  check(*b_ih, "b_ih", {layer.cell->gates * layer.H}, layer.x);
  check(*b_hh, "b_hh", {layer.cell->gates * layer.H}, layer.x);
  layer.b_ih = b_ih->contiguous();
  layer.b_hh = b_hh->contiguous();
}

ForwardResults allocate_results(const LayerTensors& layer, int64_t keep) {
  const auto options = layer.x.options();
  const CellInfo& info = *layer.cell;
  const auto none = [&] { return at::empty({0}, options); };
  ForwardResults out;
  out.y = at::empty(layer.sizes(layer.P), options);
  out.h_n = at::empty({layer.B, layer.P}, options);
  out.c_n = info.has_c ? at::empty({layer.B, layer.H}, options) : none();
  out.c = info.has_c && keep >= keep_c ? at::empty(layer.sizes(layer.H), options) : none();
  out.slots = info.keeps_slots && keep >= keep_slots ? at::empty(layer.sizes(info.slots * layer.H), options)
                                                     : none();
  return out;
}

BackwardInputs check_backward(const LayerTensors& layer, const OptionalTensor& dy,
                              const OptionalTensor& dh_n, const OptionalTensor& dc_n,
                              const OptionalTensor& dc, const at::Tensor& y, const at::Tensor& c,
                              const at::Tensor& slots) {
  const CellInfo& info = *layer.cell;
  const auto gradient = [&](const OptionalTensor& t, at::IntArrayRef sizes, const char* name) {
    if (!t.has_value()) return at::Tensor();
    check(*t, name, sizes, layer.x);
    return t->contiguous();
  };
  const auto kept = [&](const at::Tensor& t, int64_t width, const char* name) {
    TORCH_CHECK_VALUE(t.numel() == layer.rows * width && t.scalar_type() == layer.x.scalar_type() &&
                          t.device() == layer.x.device(),
                      "fastrnn: ", name, " must be what forward kept for the same arguments");
    return t.contiguous().view({layer.rows, width});
  };
  BackwardInputs in;
  in.dy = gradient(dy, layer.sizes(layer.P), "dy");
  in.dh_n = gradient(dh_n, {layer.B, layer.P}, "dh_n");
  in.y = kept(y, layer.P, "y");
  if (info.has_c) {
    in.dc_n = gradient(dc_n, {layer.B, layer.H}, "dc_n");
    in.dc = gradient(dc, layer.sizes(layer.H), "dc");
    TORCH_CHECK_VALUE(c.numel() > 0 || layer.rows == 0,
                      "fastrnn: backward needs the c of every step; call forward with keep >= 1");
    in.c = kept(c, layer.H, "c");
  }
  if (info.keeps_slots && slots.numel() > 0) in.slots = kept(slots, info.slots * layer.H, "slots");
  return in;
}

LayerGradients allocate_gradients(const LayerTensors& layer, bool needs_x, bool needs_weights) {
  const auto like = [&](const at::Tensor& t, bool needed = true) {
    const auto options = layer.x.options();
    return t.defined() && needed ? at::empty(t.sizes(), options) : at::empty({0}, options);
  };
  LayerGradients out;
  out.dx = like(layer.x, needs_x);
  out.dh0 = like(layer.h0);
  out.dc0 = like(layer.c0);
  out.dw_ih = like(layer.w_ih, needs_weights);
  out.dw_hh = like(layer.w_hh, needs_weights);
  out.db_ih = like(layer.b_ih, needs_weights);
  out.db_hh = like(layer.b_hh, needs_weights);
  out.dw_hr = like(layer.w_hr, needs_weights);
  return out;
}

at::Tensor without_padding(const LayerTensors& layer) {
  if (!layer.lengths.defined()) return layer.x;
  const at::Tensor steps = at::arange(layer.T, layer.lengths.options());
  const at::Tensor active = (steps.unsqueeze(1) < layer.lengths).unsqueeze(-1);  // [T, B, 1]
  return layer.x.masked_fill(active.logical_not().view(layer.sizes(1)), 0);
}

}  // namespace fastrnn
