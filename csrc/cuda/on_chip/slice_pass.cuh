// Forward and backward of a driver whose slices of 8 sequences know nothing of each other
// (cluster_kernels.cuh). The driver's `Kernels` say which kernel serves a layer, and where:
//
//   SliceShape shape(int64_t H)
//   with_forward<Cell, Storage>(shape, body), with_backward<Cell, Storage>(shape, body)
//     body(kernel, bytes of shared memory)
#pragma once

#include <map>
#include <mutex>
#include <tuple>

#include "cuda/on_chip/cluster_kernels.cuh"
#include "cuda/on_chip/recurrence_pass.cuh"

namespace fastrnn::cuda {

template <class Kernel, class Args>
void launch_slices(const char* name, Kernel kernel, int bytes, int64_t B, cudaStream_t stream,
                   const Args& args) {
  const auto slices = static_cast<unsigned>((B + slice_rows - 1) / slice_rows);
  const auto blocks = static_cast<unsigned>(args.shape.blocks);
  const auto threads = static_cast<unsigned>(args.shape.warps() * 32);
  launch(name, kernel, {{slices * blocks, 1, 1}, {threads, 1, 1}, bytes, blocks}, stream, args);
}

template <class Cell, class Storage, class Kernels>
class SliceForwardPass final : public RecurrenceForwardPass<Cell, Storage> {
 public:
  SliceForwardPass(const ForwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : RecurrenceForwardPass<Cell, Storage>(args, workspace, blas, stream) {}

 private:
  void start(const RecurrenceForward<Storage>& recurrence) override {
    const SliceForward<Storage> args{Kernels::shape(recurrence.H), recurrence};
    Kernels::template with_forward<Cell, Storage>(args.shape, [&](auto kernel, int bytes) {
      launch_slices("slice_forward", kernel, bytes, this->B_, this->stream_, args);
    });
  }
};

template <class Cell, class Storage, class Kernels>
class SliceBackwardPass final : public RecurrenceBackwardPass<Cell, Storage> {
 public:
  SliceBackwardPass(const BackwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : RecurrenceBackwardPass<Cell, Storage>(args, workspace, blas, stream) {}

 private:
  void start(const RecurrenceBackward<Storage>& recurrence) override {
    const SliceBackward<Storage> args{Kernels::shape(recurrence.H), recurrence};
    Kernels::template with_backward<Cell, Storage>(args.shape, [&](auto kernel, int bytes) {
      launch_slices("slice_backward", kernel, bytes, this->B_, this->stream_, args);
    });
  }
};

// Whether the current device can run both kernels; it is asked once for every cell and size.
template <class Kernels, class Storage>
bool slices_fit(CellId cell, int64_t H) {
  static std::mutex mutex;
  static std::map<std::tuple<int, CellId, int64_t>, bool> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [at, is_new] = known.try_emplace({current_device(), cell, H}, false);
  if (is_new) {
    at->second = with_cell(cell, [&](auto type) {
      using Cell = decltype(type);
      const SliceShape shape = Kernels::shape(H);
      const auto fits = [&](auto kernel, int bytes) {
        return can_launch(kernel, bytes, shape.warps() * 32, shape.blocks);
      };
      return shape.groups() <= Kernels::template most_groups<Cell, Storage>() &&
             Kernels::template with_forward<Cell, Storage>(shape, fits) &&
             Kernels::template with_backward<Cell, Storage>(shape, fits);
    });
  }
  return at->second;
}

}  // namespace fastrnn::cuda
