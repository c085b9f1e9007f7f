// The grid driver: the weights of the recurrence stay in the registers and shared memory of blocks on as
// many multiprocessors as they need, which exchange h through the L2 cache (grid_kernels.cuh).
//
// All blocks are on the device together: the host asks whether they fit, and launches them cooperatively.
// If a block still waits for another for ten seconds, the recurrence continues with NaN and no block waits
// again: the result is NaN instead of a hang.
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/on_chip/grid_kernels.cuh"
#include "cuda/on_chip/recurrence_pass.cuh"

namespace fastrnn::cuda {
// Named, since compilers merge the drivers' instantiations of driver_of() if all are of unnamed namespaces.
namespace grid_driver {

// How long a block waits for another, far longer than any step takes: 10 seconds. Under emulation, passes
// over all threads.
#ifdef FASTRNN_EMULATED
constexpr uint64_t patience = 900;
#else
constexpr uint64_t patience = 10'000'000'000;
#endif

// A launch's shape, and how many of its blocks the device has at once: at least shape.blocks, or none.
struct Fit {
  GridShape shape;
  int most_blocks;
};

// The narrowest blocks that hold their units' weights and of which there are not too many for the device;
// of those, the ones that have room for most pieces.
template <class Cell, class Storage, class Kernel>
Fit fit(Kernel kernel, int64_t H, int tiles) {
  for (int units = group_units; units <= 2 * group_units; units += group_units) {
    const int blocks = static_cast<int>((H + units - 1) / units);
    const int words = blocks * units * int{sizeof(Storage)} / 4;
    const int group_warps = units == group_units && words > 16 * k_tile_words ? 8 : 4;
    for (int depth = grid_most_depth; depth > 0; --depth) {
      const GridShape shape{blocks, units, group_warps, depth};
      const GridLayout<Cell, Storage> layout(shape, tiles);
      const int most = blocks_together(kernel, layout.bytes, shape.warps() * 32);
      if (most >= blocks) return {shape, most};
    }
  }
  return {};
}

// The device is asked once for every kernel and size.
template <class Cell, class Storage, class Kernel>
Fit known_fit(Kernel kernel, int64_t H, int tiles) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int64_t, Kernel>, Fit> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [at, is_new] = known.try_emplace({current_device(), H, kernel}, Fit{});
  if (is_new) at->second = fit<Cell, Storage>(kernel, H, tiles);
  return at->second;
}

template <class Cell, class Storage>
Fit forward_fit(int64_t H) {
  return known_fit<Cell, Storage>(grid_forward<Cell, Storage>, H, Cell::gates);
}
template <class Cell, class Storage>
Fit backward_fit(int64_t H) {
  return known_fit<Cell, Storage>(grid_backward<Cell, Storage>, H, 1);
}

// What blocks exchange in a pass, and its launches: replicas side by side, each for a part of the batch,
// and one launch after another where the device has no room for more of them.
class Launches {
 public:
  Launches(const Fit& fit, int64_t B, Arena& arena, int64_t row_bytes)
      : slices_(static_cast<int>((B + slice_rows - 1) / slice_rows)) {
    const int blocks = std::max(1, fit.shape.blocks);
    const int most = std::clamp(fit.most_blocks / blocks, 1, std::max(1, slices_));
    const int each = std::min(grid_slices, (slices_ + most - 1) / most);
    replicas_ = std::min(most, (slices_ + std::max(1, each) - 1) / std::max(1, each));
    exchange_ = {fit.shape, 0, each, nullptr, nullptr, nullptr, patience};
    exchange_.operands = arena.take<unsigned char>(2 * slices_ * slice_rows * row_bytes);
    words_ = int64_t{slices_} * blocks + 1;
    exchange_.gave_up = arena.take<uint32_t>(words_);
    exchange_.flags = exchange_.gave_up + 1;
  }

  // Before the first launch of a pass.
  void begin(cudaStream_t stream) const {
    zero_async(exchange_.gave_up, words_ * int64_t{sizeof(uint32_t)}, stream);
  }

  template <class Cell, class Storage, class Args, class Recurrence>
  void run(const char* name, void (*kernel)(Args), const Recurrence& recurrence, int tiles,
           cudaStream_t stream) {
    const GridShape& shape = exchange_.shape;
    const int bytes = GridLayout<Cell, Storage>(shape, tiles).bytes;
    const auto blocks = static_cast<unsigned>(replicas_ * shape.blocks);
    const auto threads = static_cast<unsigned>(shape.warps() * 32);
    for (int slice = 0; slice < slices_; slice += replicas_ * exchange_.slices) {
      exchange_.first_slice = slice;
      launch(name, kernel, {{blocks, 1, 1}, {threads, 1, 1}, bytes, 1, true}, stream,
             Args{exchange_, recurrence});
    }
  }

 private:
  GridExchange exchange_;
  int slices_, replicas_;
  int64_t words_;
};

template <class Cell, class Storage>
class Forward final : public RecurrenceForwardPass<Cell, Storage> {
 public:
  Forward(const ForwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : RecurrenceForwardPass<Cell, Storage>(args, workspace, blas, stream),
        fit_(forward_fit<Cell, Storage>(this->H_)),
        launches_(fit_, this->B_, this->arena_, fit_.shape.all_units() * int64_t{sizeof(Storage)}) {}

 private:
  void prepare() override { launches_.begin(this->stream_); }
  void start(const RecurrenceForward<Storage>& recurrence) override {
    launches_.template run<Cell, Storage>("grid_forward", grid_forward<Cell, Storage>, recurrence,
                                          Cell::gates, this->stream_);
  }

  const Fit fit_;
  Launches launches_;
};

template <class Cell, class Storage>
class Backward final : public RecurrenceBackwardPass<Cell, Storage> {
 public:
  Backward(const BackwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : RecurrenceBackwardPass<Cell, Storage>(args, workspace, blas, stream),
        fit_(backward_fit<Cell, Storage>(this->H_)),
        launches_(fit_, this->B_, this->arena_,
                  Cell::gates * fit_.shape.all_units() * int64_t{sizeof(Storage)}) {}

 private:
  void start(const RecurrenceBackward<Storage>& recurrence) override {
    launches_.begin(this->stream_);
    launches_.template run<Cell, Storage>("grid_backward", grid_backward<Cell, Storage>, recurrence, 1,
                                          this->stream_);
  }

  const Fit fit_;
  Launches launches_;
};

template <class Storage>
bool serves(const Problem& p) {
  return is_on_chip(p) && with_cell(p.cell, [&](auto type) {
           using Cell = decltype(type);
           return forward_fit<Cell, Storage>(p.H).most_blocks > 0 &&
                  backward_fit<Cell, Storage>(p.H).most_blocks > 0;
         });
}

}  // namespace grid_driver

template <class Storage>
const Driver<Storage> Drivers<Storage>::grid =
    driver_of<grid_driver::Forward, grid_driver::Backward, Storage>("grid", grid_driver::serves<Storage>);
template const Driver<float> Drivers<float>::grid;
template const Driver<BFloat16> Drivers<BFloat16>::grid;
template const Driver<Half> Drivers<Half>::grid;

}  // namespace fastrnn::cuda
