// The cluster driver: the weights of the recurrence stay in the registers and shared memory of one cluster
// of blocks for every 8 sequences (cluster_kernels.cuh).
#include "cuda/on_chip/slice_pass.cuh"

namespace fastrnn::cuda {
// Named, since compilers merge the drivers' instantiations of driver_of() if all are of unnamed namespaces.
namespace cluster_driver {

// Kernels in versions by what fits the registers of a block: fragments that stay in registers, threads.
template <int resident_, int threads_>
struct Version {
  static constexpr int resident = resident_, threads = threads_;
};

struct Kernels {
  // The least cluster whose blocks own at most 32 units, else the largest with up to 64.
  static SliceShape shape(int64_t H) {
    const int all = static_cast<int>((H + group_units - 1) / group_units);
    int blocks = 4;
    while (blocks < 16 && all > 2 * blocks) blocks *= 2;
    return {blocks, (all + blocks - 1) / blocks * group_units, InCluster::group_warps};
  }

  // A cell of several gates whose blocks own more than 48 units, or 32 of float, does not fit into 16 of
  // them.
  template <class Cell, class Storage>
  static constexpr int most_groups() {
    return Cell::gates == 1 ? 4 : sizeof(Storage) == 2 ? 3 : 2;
  }

  template <class Cell, class Storage, class Body>
  static auto with_version(SliceShape shape, Body body) {
    if constexpr (most_groups<Cell, Storage>() == 4) {
      if (shape.groups() == 4) return body(Version<4, 512>{});
    }
    if constexpr (most_groups<Cell, Storage>() >= 3) {
      if (shape.groups() == 3) return body(Version<6, 384>{});
    }
    return body(Version<8, 256>{});
  }

  template <class Cell, class Storage, class Body>
  static auto with_forward(SliceShape shape, Body body) {
    return with_version<Cell, Storage>(shape, [&](auto version) {
      using V = decltype(version);
      return body(slice_forward<Cell, Storage, InCluster, V::resident, V::threads>,
                  ForwardLayout<Cell, Storage, V::resident>(shape).bytes);
    });
  }

  template <class Cell, class Storage, class Body>
  static auto with_backward(SliceShape shape, Body body) {
    return with_version<Cell, Storage>(shape, [&](auto version) {
      using V = decltype(version);
      const auto run = [&](auto tiles) {
        constexpr int count = decltype(tiles)::value;
        return body(slice_backward<Cell, Storage, InCluster, count, V::resident, V::threads>,
                    BackwardLayout<Cell, Storage>(shape).template bytes<count, V::resident>(shape));
      };
      if constexpr (V::threads == 256) {
        if (shape.blocks == 4) return run(std::integral_constant<int, 1>{});
        if (shape.blocks == 8) return run(std::integral_constant<int, 2>{});
      }
      return run(std::integral_constant<int, 4>{});
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

}  // namespace cluster_driver

template <class Storage>
const Driver<Storage> Drivers<Storage>::cluster =
    driver_of<cluster_driver::Forward, cluster_driver::Backward, Storage>("cluster",
                                                                          cluster_driver::serves<Storage>);
template const Driver<float> Drivers<float>::cluster;
template const Driver<BFloat16> Drivers<BFloat16>::cluster;
template const Driver<Half> Drivers<Half>::cluster;

}  // namespace fastrnn::cuda
