// Forward and backward of drivers whose recurrence is one launch for many steps (recurrence.cuh): what
// those launches are given.
#pragma once

#include "cuda/on_chip/recurrence.cuh"
#include "cuda/pass.cuh"

namespace fastrnn::cuda {

// Whether the kernels compute this kind of layer, of any size.
inline bool is_on_chip(const Problem& p) { return p.rounds() && !p.projects; }

template <class Cell, class Storage>
class RecurrenceForwardPass : public ForwardPass<Cell, Storage> {
 protected:
  RecurrenceForwardPass(const ForwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : ForwardPass<Cell, Storage>(args, workspace, blas, stream, /*chunks=*/8) {
    this->allocate_first_rows();
  }
  ~RecurrenceForwardPass() = default;

  void recur(int64_t k0, int64_t k1, const float* input, int64_t first_row) final {
    if (k0 == 0) {
      this->upload_first_rows();
      prepare();
    }
    start({this->device_sequence(), k0, k1, this->H_, input, first_row, this->w_.w_hh, this->w_.b_ih,
           this->w_.b_hh, this->h_, this->c_, this->a_.y, this->a_.c, this->a_.slots});
  }

  // Before the first launch.
  virtual void prepare() {}
  virtual void start(const RecurrenceForward<Storage>& recurrence) = 0;
};

template <class Cell, class Storage>
class RecurrenceBackwardPass : public BackwardPass<Cell, Storage> {
 protected:
  RecurrenceBackwardPass(const BackwardArgs<Storage>& args, void* workspace, Blas* blas,
                         cudaStream_t stream)
      : BackwardPass<Cell, Storage>(args, workspace, blas, stream, /*recurs_on_device=*/true) {}
  ~RecurrenceBackwardPass() = default;

  const float* recur() final {
    start({this->device_sequence(), this->H_, this->w_.w_hh, this->a_.h0, this->a_.c0, this->a_.y,
           this->a_.c, this->slots(), this->a_.dy, this->a_.dc, this->carry_h_, this->carry_c_, this->d_});
    return nullptr;
  }

  virtual void start(const RecurrenceBackward<Storage>& recurrence) = 0;
};

}  // namespace fastrnn::cuda
