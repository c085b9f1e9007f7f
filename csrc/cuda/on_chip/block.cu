#include "cuda/on_chip/block.h"

#include "cuda/on_chip/slice_pass.cuh"

namespace fastrnn::cuda {
namespace {

// Kernels in two versions: fragments that stay in a thread's registers, threads.
template <int fragments_, int threads_>
struct Version {
  static constexpr int fragments = fragments_, threads = threads_;
};

struct Kernels {
  static SliceShape shape(int64_t H) {
    const int groups = static_cast<int>((H + group_units - 1) / group_units);
    return {1, groups * group_units, InBlock::group_warps};
  }

  // Beyond them a multiprocessor holds no LSTM's weights, and threads have too few registers.
  template <class Cell, class Storage>
  static constexpr int most_groups() {
    return 12;
  }

  template <class Body>
  static auto with_version(SliceShape shape, Body body) {
    return shape.groups() <= 8 ? body(Version<20, 256>{}) : body(Version<12, 384>{});
  }

  template <class Cell, class Storage, class Body>
  static auto with_forward(SliceShape shape, Body body) {
    return with_version(shape, [&](auto version) {
      using V = decltype(version);
      constexpr int resident = V::fragments / Cell::gates;
      return body(slice_forward<Cell, Storage, InBlock, resident, V::threads>,
                  ForwardLayout<Cell, Storage, resident>(shape).bytes);
    });
  }

  template <class Cell, class Storage, class Body>
  static auto with_backward(SliceShape shape, Body body) {
    return with_version(shape, [&](auto version) {
      using V = decltype(version);
      return body(slice_backward<Cell, Storage, InBlock, 1, V::fragments, V::threads>,
                  BackwardLayout<Cell, Storage>(shape).template bytes<1, V::fragments>(shape));
    });
  }
};

template <class Cell, class Storage>
using Forward = SliceForwardPass<Cell, Storage, Kernels>;
template <class Cell, class Storage>
using Backward = SliceBackwardPass<Cell, Storage, Kernels>;

}  // namespace

template <class Storage>
bool block_serves(CellId cell, int64_t H) {
  return slices_fit<Kernels, Storage>(cell, H);
}

FASTRNN_DRIVER(block, float)
FASTRNN_DRIVER(block, BFloat16)
FASTRNN_DRIVER(block, Half)
template bool block_serves<float>(CellId, int64_t);
template bool block_serves<BFloat16>(CellId, int64_t);
template bool block_serves<Half>(CellId, int64_t);

}  // namespace fastrnn::cuda
