// A layer's matrices packed beforehand.
#include "cpu/passes.h"
#include "cpu/product.h"

namespace fastrnn {

// Panels in the order in which Forward::find_panels() reads them.
template <class Kernels>
int64_t pack_weights(const CellInfo& cell, const Weights<typename Kernels::Storage>& weights,
                     const Kernels& kernels, char* panels) {
  using Product = TransposedProduct<Kernels>;
  const int64_t outputs = projects(weights) ? weights.P : 0;
  Product products[] = {{kernels, weights.w_ih, weights.I, cell.gates, weights.H},
                        {kernels, weights.w_hh, weights.P, cell.gates, weights.H},
                        {kernels, weights.w_hr, weights.H, 1, outputs}};
  int64_t bytes = 0;
  for (Product& product : products) {
    if (panels) {
      product.use_panels(panels + bytes);
      for (int64_t j = 0; j < product.blocks(); ++j) product.pack(j);
    }
    bytes += product.bytes();
  }
  return bytes;
}

#define FASTRNN_PACK_WEIGHTS(...)                                                                          \
  template int64_t pack_weights(const CellInfo&, const Weights<__VA_ARGS__::Storage>&, const __VA_ARGS__&, \
                                char*);
FASTRNN_PACK_WEIGHTS(Kernels<float, float, float>)
FASTRNN_PACK_WEIGHTS(Kernels<float, BFloat16, float>)
FASTRNN_PACK_WEIGHTS(Kernels<float, SplitFloat, float>)
FASTRNN_PACK_WEIGHTS(Kernels<float, QuantizedByte, float>)
FASTRNN_PACK_WEIGHTS(Kernels<double, double, double>)
FASTRNN_PACK_WEIGHTS(Kernels<BFloat16, float, float>)
FASTRNN_PACK_WEIGHTS(Kernels<Half, float, float>)
FASTRNN_PACK_WEIGHTS(Kernels<BFloat16, BFloat16, float>)

}  // namespace fastrnn
