// The block driver: the weights of a small layer's recurrence stay in the registers and shared memory of
// one block for every 8 sequences (cluster_kernels.cuh).
#include "cuda/on_chip/slice_pass.cuh"

namespace fastrnn::cuda {
// Named, since compilers merge the drivers' instantiations of driver_of() if all are of unnamed namespaces.
namespace block_driver {

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

template <class Storage>
bool serves(const Problem& p) {
  return is_on_chip(p) && slices_fit<Kernels, Storage>(p.cell, p.H);
}

}  // namespace block_driver

template <class Storage>
const Driver<Storage> Drivers<Storage>::block =
    driver_of<block_driver::Forward, block_driver::Backward, Storage>("block",
                                                                      block_driver::serves<Storage>);
template const Driver<float> Drivers<float>::block;
template const Driver<BFloat16> Drivers<BFloat16>::block;
template const Driver<Half> Drivers<Half>::block;

}  // namespace fastrnn::cuda
