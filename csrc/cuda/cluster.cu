#include "cluster.h"

#include <map>
#include <mutex>
#include <tuple>

#include "cluster_kernels.cuh"
#include "pass.cuh"

namespace fastrnn::cuda {
namespace {

// The least cluster whose blocks own at most 32 units, else the largest with up to 64.
ClusterShape shape_for(int64_t H) {
  const int all = static_cast<int>((H + group_units - 1) / group_units);
  int blocks = 4;
  while (blocks < 16 && all > 2 * blocks) blocks *= 2;
  return {blocks, (all + blocks - 1) / blocks * group_units};
}

// Kernels in versions by what fits the registers of a block: fragments that stay in registers, threads.
template <int resident_, int threads_>
struct Version {
  static constexpr int resident = resident_, threads = threads_;
};

// A cell of several gates whose blocks own more than 48 units does not fit into 16 of them.
template <class Cell>
constexpr int most_groups = Cell::gates == 1 ? 4 : 3;

template <class Cell, class Body>
auto with_version(ClusterShape shape, Body body) {
  if constexpr (most_groups<Cell> == 4) {
    if (shape.groups() == 4) return body(Version<4, 512>{});
  }
  return shape.groups() <= 2 ? body(Version<8, 256>{}) : body(Version<6, 384>{});
}

template <class Cell, class Storage, class Body>
auto with_forward(ClusterShape shape, Body body) {
  return with_version<Cell>(shape, [&](auto version) {
    using V = decltype(version);
    return body(cluster_forward<Cell, Storage, V::resident, V::threads>,
                ForwardLayout<Cell, Storage, V::resident>(shape).bytes);
  });
}

template <class Cell, class Storage, class Body>
auto with_backward(ClusterShape shape, Body body) {
  return with_version<Cell>(shape, [&](auto version) {
    using V = decltype(version);
    const auto run = [&](auto tiles) {
      constexpr int count = decltype(tiles)::value;
      return body(cluster_backward<Cell, Storage, count, V::resident, V::threads>,
                  BackwardLayout<Cell, Storage>(shape, V::resident).bytes(shape, count));
    };
    if constexpr (V::threads == 256) {
      if (shape.blocks == 4) return run(std::integral_constant<int, 1>{});
      if (shape.blocks == 8) return run(std::integral_constant<int, 2>{});
    }
    return run(std::integral_constant<int, 4>{});
  });
}

template <class Kernel>
void launch_clusters(const char* name, Kernel kernel, int bytes, ClusterShape shape, int64_t B,
                     cudaStream_t stream, const auto& args) {
  const auto slices = static_cast<unsigned>((B + slice_rows - 1) / slice_rows);
  const auto blocks = static_cast<unsigned>(shape.blocks);
  launch(name, kernel,
         {{slices * blocks, 1, 1}, {static_cast<unsigned>(shape.threads()), 1, 1}, bytes, blocks}, stream,
         args);
}

template <class Cell, class Storage>
class Forward final : public ForwardPass<Cell, Storage> {
  using Base = ForwardPass<Cell, Storage>;
  using Base::a_, Base::B_, Base::H_, Base::h_, Base::c_, Base::w_;

 public:
  Forward(const ForwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : Base(args, workspace, blas, stream, /*chunks=*/8) {
    this->take_first_rows();
  }

 private:
  void recur(int64_t k0, int64_t k1, const float* input, int64_t first_row) override {
    if (k0 == 0) this->upload_first_rows();
    const ClusterShape shape = shape_for(H_);
    const ClusterForward<Storage> args{shape,     this->device_sequence(),
                                       k0,        k1,
                                       H_,        input,
                                       first_row, w_.w_hh,
                                       w_.b_ih,   w_.b_hh,
                                       h_,        c_,
                                       a_.y,      a_.c,
                                       a_.slots};
    with_forward<Cell, Storage>(shape, [&](auto kernel, int bytes) {
      launch_clusters("cluster_forward", kernel, bytes, shape, B_, this->stream_, args);
    });
  }
};

template <class Cell, class Storage>
class Backward final : public BackwardPass<Cell, Storage> {
  using Base = BackwardPass<Cell, Storage>;
  using Base::a_, Base::B_, Base::carry_c_, Base::carry_h_, Base::d_, Base::H_, Base::w_;

 public:
  Backward(const BackwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : Base(args, workspace, blas, stream, /*recurs_on_device=*/true) {}

 private:
  const float* recur() override {
    const ClusterShape shape = shape_for(H_);
    const ClusterBackward<Storage> args{
        shape, this->device_sequence(), H_,    w_.w_hh, a_.h0,    a_.c0,    a_.y,
        a_.c,  this->slots(),           a_.dy, a_.dc,   carry_h_, carry_c_, d_};
    with_backward<Cell, Storage>(shape, [&](auto kernel, int bytes) {
      launch_clusters("cluster_backward", kernel, bytes, shape, B_, this->stream_, args);
    });
    return nullptr;
  }
};

template <class Cell, class Storage>
bool serves(int64_t H) {
  const ClusterShape shape = shape_for(H);
  if (shape.groups() > most_groups<Cell>) return false;
  const auto fits = [&](auto kernel, int bytes) {
    return can_launch(kernel, bytes, shape.threads(), shape.blocks);
  };
  return with_forward<Cell, Storage>(shape, fits) && with_backward<Cell, Storage>(shape, fits);
}

}  // namespace

// The device is asked once for every cell and size.
template <class Storage>
bool cluster_serves(CellId cell, int64_t H) {
  static std::mutex mutex;
  static std::map<std::tuple<int, CellId, int64_t>, bool> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [at, is_new] = known.try_emplace({current_device(), cell, H}, false);
  if (is_new) at->second = with_cell(cell, [&](auto type) { return serves<decltype(type), Storage>(H); });
  return at->second;
}

FASTRNN_DRIVER(cluster, float)
FASTRNN_DRIVER(cluster, BFloat16)
FASTRNN_DRIVER(cluster, Half)
template bool cluster_serves<float>(CellId, int64_t);
template bool cluster_serves<BFloat16>(CellId, int64_t);
template bool cluster_serves<Half>(CellId, int64_t);

}  // namespace fastrnn::cuda
