#include "torch/arguments.h"

namespace fastrnn {
namespace {

at::Tensor or_undefined(const OptionalTensor& t) { return t.has_value() ? *t : at::Tensor(); }

void check(const at::Tensor& t, const char* name, at::IntArrayRef sizes, const at::Tensor& like) {
  TORCH_CHECK(t.sizes() == sizes, "fastrnn: ", name, " must have the shape ", sizes, ", got ", t.sizes());
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), "fastrnn: ", name, " must be ", like.scalar_type(),
              " as the input is, got ", t.scalar_type());
  TORCH_CHECK(t.device() == like.device(), "fastrnn: ", name, " must be on ", like.device(),
              " as the input is, got ", t.device());
}

void check_batch_sizes(const Layer& layer) {
  const at::Tensor& sizes = layer.batch_sizes;
  TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.device().is_cpu(),
              "fastrnn: batch_sizes must be a 1-D int64 tensor on the CPU");
  TORCH_CHECK(layer.T > 0, "Expected sequence length to be larger than 0 in RNN");
  const int64_t* size = sizes.const_data_ptr<int64_t>();
  int64_t sum = 0;
  for (int64_t t = 0; t < layer.T; ++t) {
    TORCH_CHECK(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]),
                "fastrnn: batch_sizes must be positive and never increase");
    TORCH_CHECK(size[t] <= layer.rows - sum, "fastrnn: batch_sizes sum to more than the input's ",
                layer.rows, " rows");
    sum += size[t];
  }
  TORCH_CHECK(sum == layer.rows, "fastrnn: batch_sizes sum to ", sum, " but the input has ", layer.rows,
              " rows");
}

// Only where it costs nothing: on a GPU they would have to be waited for.
void check_lengths(const Layer& layer) {
  const int64_t* lengths = layer.lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < layer.B; ++b) {
    TORCH_CHECK_VALUE(0 <= lengths[b] && lengths[b] <= layer.T, "lengths should be from 0 to ", layer.T,
                      ", the number of steps, got ", lengths[b], " in row ", b);
  }
}

}  // namespace

Layer check_inputs(std::string_view cell, const at::Tensor& x, const at::Tensor& h0,
                   const OptionalTensor& c0, const OptionalTensor& batch_sizes,
                   const OptionalTensor& lengths, const OptionalTensor& reset, int64_t H, int64_t P) {
  Layer layer;
  layer.id = find_cell(cell);
  layer.cell = &cell_info(layer.id);
  const CellInfo& info = *layer.cell;
  layer.H = H;
  layer.P = P;

  TORCH_CHECK(x.dim() == 3 || x.dim() == 2, "fastrnn: the input must have 2 or 3 dimensions, got ",
              x.dim());
  layer.leading = x.sizes().slice(0, x.dim() - 1).vec();
  layer.I = x.size(-1);
  layer.rows = 1;
  for (int64_t n : layer.leading) layer.rows *= n;
  layer.batch_sizes = or_undefined(batch_sizes);
  if (layer.batch_sizes.defined()) {
    TORCH_CHECK(x.dim() == 2, "fastrnn: a packed input must have 2 dimensions, got ", x.dim());
    layer.batch_sizes = layer.batch_sizes.contiguous();
    layer.T = layer.batch_sizes.numel();
    check_batch_sizes(layer);
    layer.B = layer.batch_sizes.const_data_ptr<int64_t>()[0];
  } else {
    layer.T = x.dim() == 3 ? x.size(0) : 1;
    layer.B = x.size(-2);
    TORCH_CHECK(layer.T > 0, "Expected sequence length to be larger than 0 in RNN");
  }
  TORCH_CHECK(layer.I > 0 && layer.H > 0 && layer.P > 0, "fastrnn: sizes must be positive");
  check(h0, "h0", {layer.B, layer.P}, x);
  TORCH_CHECK(c0.has_value() == info.has_c, "fastrnn: ", info.name,
              info.has_c ? " needs c0" : " has no c0");
  if (c0.has_value()) check(*c0, "c0", {layer.B, layer.H}, x);

  layer.lengths = or_undefined(lengths);
  if (layer.lengths.defined()) {
    TORCH_CHECK(!layer.batch_sizes.defined(), "fastrnn: lengths and batch_sizes exclude each other");
    TORCH_CHECK(layer.lengths.scalar_type() == at::kLong && layer.lengths.device() == x.device() &&
                    layer.lengths.dim() == 1 && layer.lengths.size(0) == layer.B,
                "fastrnn: lengths must be int64 of shape [", layer.B, "] on ", x.device());
    layer.lengths = layer.lengths.contiguous();
    if (x.is_cpu()) check_lengths(layer);
  }
  layer.reset = or_undefined(reset);
  if (layer.reset.defined()) {
    TORCH_CHECK(layer.reset.scalar_type() == at::kBool && layer.reset.device() == x.device() &&
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

Layer check_layer(std::string_view cell, const at::Tensor& x, const at::Tensor& h0,
                  const OptionalTensor& c0, const at::Tensor& w_ih, const at::Tensor& w_hh,
                  const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                  const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                  const OptionalTensor& reset) {
  const CellInfo& info = cell_info(find_cell(cell));
  TORCH_CHECK(w_ih.dim() == 2 && w_ih.size(0) % info.gates == 0, "fastrnn: w_ih must have the shape [",
              info.gates, " * hidden_size, input_size], got ", w_ih.sizes());
  TORCH_CHECK(!w_hr.has_value() || info.has_c, "fastrnn: ", info.name, " has no projection");
  TORCH_CHECK(!w_hr.has_value() || w_hr->dim() == 2, "fastrnn: w_hr must have 2 dimensions");
  const int64_t H = w_ih.size(0) / info.gates, P = w_hr.has_value() ? w_hr->size(0) : H;
  TORCH_CHECK(x.dim() == 3 || x.dim() == 2, "fastrnn: the input must have 2 or 3 dimensions, got ",
              x.dim());
  const int64_t G = info.gates * H;
  check(w_ih, "w_ih", {G, x.size(-1)}, x);
  check(w_hh, "w_hh", {G, P}, x);
  TORCH_CHECK(b_ih.has_value() == b_hh.has_value(), "fastrnn: b_ih and b_hh come together or not at all");
  if (b_ih.has_value()) {
    check(*b_ih, "b_ih", {G}, x);
    check(*b_hh, "b_hh", {G}, x);
  }
  if (w_hr.has_value()) check(*w_hr, "w_hr", {P, H}, x);

  Layer layer = check_inputs(cell, x, h0, c0, batch_sizes, lengths, reset, H, P);
  const auto contiguous = [](const OptionalTensor& t) {
    return t.has_value() ? t->contiguous() : at::Tensor();
  };
  layer.w_ih = w_ih.contiguous();
  layer.w_hh = w_hh.contiguous();
  layer.b_ih = contiguous(b_ih);
  layer.b_hh = contiguous(b_hh);
  layer.w_hr = contiguous(w_hr);
  return layer;
}

at::Tensor without_padding(const Layer& layer) {
  if (!layer.lengths.defined()) return layer.x;
  const at::Tensor steps = at::arange(layer.T, layer.lengths.options());
  const at::Tensor active = (steps.unsqueeze(1) < layer.lengths).unsqueeze(-1);  // [T, B, 1]
  return layer.x.masked_fill(active.logical_not().view(layer.sizes(1)), 0);
}

}  // namespace fastrnn
