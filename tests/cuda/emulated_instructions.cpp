// Small kernels that try the emulation and the primitives themselves, some with a bug on demand.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "cuda/common/reductions.cuh"
#include "cuda/ptx/instructions.cuh"

namespace fastrnn::cuda {
namespace {

// ---- Barriers and bounds: the sums of a bias gradient ----

// Sums the columns of x [rows, columns] in one part; `believed` columns make it read and write beside.
at::Tensor column_sums(const at::Tensor& x, int64_t believed) {
  at::Tensor out = at::empty({x.size(1)}, x.options());
  const SumRows<float> args{x.size(0), believed, x.size(0), x.const_data_ptr<float>(),
                            out.data_ptr<float>()};
  const unsigned across = static_cast<unsigned>((believed + sum_columns - 1) / sum_columns);
  launch("sum_rows", sum_rows<float>,
         {{across, 1, 1}, {sum_columns, sum_lines, 1}, sizeof(float) * sum_columns * sum_lines}, nullptr,
         args);
  return out;
}

// ---- Products by a warp ----

template <class Storage>
struct MmaArgs {
  const Storage *a, *b;  // [16, k], [8, k]
  int words;             // of a row
  float* to;             // [16, 8]
};

template <class Storage>
void mma_kernel(MmaArgs<Storage> args) {
  const Word* a = reinterpret_cast<const Word*>(args.a);
  const Word* b = reinterpret_cast<const Word*>(args.b);
  const int row = lane() / 4, word = lane() % 4;
  float acc[4] = {};
  for (int k = 0; k < args.words; k += 8) {
    const auto at = [&](const Word* from, int r, int w) { return from[r * args.words + k + w]; };
    mma<Storage>(acc,
                 {{at(a, row, word), at(a, row + 8, word), at(a, row, word + 4), at(a, row + 8, word + 4)}},
                 {{at(b, row, word), at(b, row, word + 4)}});
  }
  for (int i = 0; i < 4; ++i) args.to[(row + i / 2 * 8) * 8 + word * 2 + i % 2] = acc[i];
}

at::Tensor mma_product(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor out = at::empty({16, 8}, a.options().dtype(at::kFloat));
  const auto run = [&](auto tag) {
    using S = decltype(tag);
    const int words = static_cast<int>(a.size(1) * sizeof(S) / sizeof(Word));
    launch("mma", mma_kernel<S>, {{1, 1, 1}, {32, 1, 1}}, nullptr,
           MmaArgs<S>{static_cast<const S*>(a.const_data_ptr()), static_cast<const S*>(b.const_data_ptr()),
                      words, out.data_ptr<float>()});
  };
  if (a.scalar_type() == at::kBFloat16) {
    run(BFloat16{});
  } else if (a.scalar_type() == at::kHalf) {
    run(Half{});
  } else {
    run(float{});
  }
  return out;
}

// ---- Clusters: every block sends to all, step by step ----

struct RingArgs {
  int steps, forget_to_wait;
  uint32_t* to;  // [blocks] what came of it in each block
};

// In each step a block takes what all blocks of its cluster sent in the step before, and sends one
// number made of it to all. `forget_to_wait` is the rank of a block that reads without waiting.
void ring_kernel(RingArgs args) {
  const unsigned size = gridDim.x < 8 ? gridDim.x : 8, rank = cluster_rank();
  auto* barriers = reinterpret_cast<Mbarrier*>(shared_memory());  // [2]
  auto* inbox = reinterpret_cast<Words4*>(shared_memory() + 16);  // [2][size]
  const unsigned bytes = size * sizeof(Words4);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(&barriers[i], 1);
    mbarrier_init_fence();
  }
  sync_block();
  sync_cluster();
  uint32_t value = rank + 1;
  for (int step = 0; step < args.steps; ++step) {
    const int half = step % 2;
    if (threadIdx.x == 0) mbarrier_arrive_expect(&barriers[half], bytes);
    if (threadIdx.x < size) {
      send(inbox + half * size + rank, threadIdx.x, Words4{{value, value, value, value}}, &barriers[half]);
    }
    if (static_cast<int>(rank) != args.forget_to_wait) {
      mbarrier_wait(&barriers[half], step / 2 % 2);
    }
    value = rank;
    for (unsigned other = 0; other < size; ++other) {
      value += (other + 3) * inbox[half * size + other].word[step % 4];
    }
    sync_block();
  }
  sync_cluster();
  if (threadIdx.x == 0) args.to[blockIdx.x] = value;
}

at::Tensor ring(int64_t blocks, int64_t steps, int64_t forget_to_wait) {
  at::Tensor out = at::zeros({blocks}, at::kInt);
  const unsigned size = blocks < 8 ? blocks : 8;
  launch("ring", ring_kernel,
         {{static_cast<unsigned>(blocks), 1, 1},
          {32, 1, 1},
          static_cast<int>(16 + 2 * size * sizeof(Words4)),
          size},
         nullptr,
         RingArgs{static_cast<int>(steps), static_cast<int>(forget_to_wait),
                  reinterpret_cast<uint32_t*>(out.data_ptr<int>())});
  return out;
}

// ---- Grid-wide flags, and a block that never comes ----

struct MeetArgs {
  uint32_t* arrived;  // [1]
  uint32_t* met;      // [blocks] 1 where a block saw all others arrive
  uint64_t patience;  // 0: forever
};

void meet_kernel(MeetArgs args) {
  if (threadIdx.x != 0) return;
  add_release(args.arrived, 1);
  const auto all = [&] { return load_relaxed(args.arrived) == gridDim.x; };
  args.met[blockIdx.x] = wait_for(all, args.patience ? args.patience : ~uint64_t{0});
}

at::Tensor meet(int64_t blocks, int64_t absent, int64_t patience) {
  at::Tensor arrived = at::zeros({1}, at::kInt), met = at::zeros({blocks}, at::kInt);
  emulation::options().absent_block = absent;
  struct Restore {
    ~Restore() { emulation::options().absent_block = -1; }
  } restore;
  launch("meet", meet_kernel, {{static_cast<unsigned>(blocks), 1, 1}, {32, 1, 1}, 0, 1, true}, nullptr,
         MeetArgs{reinterpret_cast<uint32_t*>(arrived.data_ptr<int>()),
                  reinterpret_cast<uint32_t*>(met.data_ptr<int>()), static_cast<uint64_t>(patience)});
  return met;
}

// ---- Copies ahead ----

struct CopyArgs {
  const Words4* from;  // [groups][32]
  int groups, pending;
  Words4* to;  // [groups][32]
};

// Each lane copies `groups` pieces through shared memory, two under way at a time; it waits until at
// most `pending` of them are.
void copy_kernel(CopyArgs args) {
  auto* room = reinterpret_cast<Words4*>(shared_memory());  // [2][32]
  const auto begin = [&](int group) {
    if (group < args.groups) begin_copy(room + group % 2 * 32 + lane(), args.from + group * 32 + lane());
    end_copies();
  };
  begin(0);
  for (int group = 0; group < args.groups; ++group) {
    begin(group + 1);
    wait_copies(args.pending);
    args.to[group * 32 + lane()] = room[group % 2 * 32 + lane()];
  }
}

at::Tensor copied(const at::Tensor& x, int64_t pending) {
  at::Tensor out = at::empty_like(x);
  launch("copy", copy_kernel, {{1, 1, 1}, {32, 1, 1}, 2 * 32 * sizeof(Words4)}, nullptr,
         CopyArgs{static_cast<const Words4*>(x.const_data_ptr()), static_cast<int>(x.size(0)),
                  static_cast<int>(pending), static_cast<Words4*>(out.data_ptr())});
  return out;
}

// ---- A barrier that one thread does not reach ----

struct Nothing {};

void lone_kernel(Nothing) {
  if (threadIdx.x != 5) sync_block();
}

void lone() { launch("lone", lone_kernel, {{1, 1, 1}, {32, 1, 1}}, nullptr, Nothing{}); }

struct SumArgs {
  float* to;  // [32]
};

// The sum of all lanes' numbers by shuffles, in every lane.
void shuffle_kernel(SumArgs args) {
  float sum = static_cast<float>(lane() * lane());
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  args.to[lane()] = sum;
}

at::Tensor shuffle_sum() {
  at::Tensor out = at::empty({32}, at::kFloat);
  launch("shuffle", shuffle_kernel, {{1, 1, 1}, {32, 1, 1}}, nullptr, SumArgs{out.data_ptr<float>()});
  return out;
}

// ---- exp, sigmoid and tanh as a GPU computes them ----

at::Tensor math(const std::string& name, const at::Tensor& x) {
  at::Tensor out = at::empty_like(x);
  const float* from = x.const_data_ptr<float>();
  float* to = out.data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    to[i] = name == "exp"       ? fastrnn::exp(from[i])
            : name == "sigmoid" ? fastrnn::sigmoid(from[i])
                                : fastrnn::tanh(from[i]);
  }
  return out;
}

// The operand of a TF32 product that each number becomes, as bits.
at::Tensor tf32_operands(const at::Tensor& x) {
  at::Tensor out = at::empty(x.sizes(), at::kInt);
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.data_ptr<int>()[i] = static_cast<int>(operand_bits(x.const_data_ptr<float>()[i]));
  }
  return out;
}

}  // namespace
}  // namespace fastrnn::cuda

TORCH_LIBRARY_FRAGMENT(fastrnn_emulated, m) {
  m.def("column_sums(Tensor x, int believed) -> Tensor", fastrnn::cuda::column_sums);
  m.def("mma_product(Tensor a, Tensor b) -> Tensor", fastrnn::cuda::mma_product);
  m.def("ring(int blocks, int steps, int forget_to_wait) -> Tensor", fastrnn::cuda::ring);
  m.def("meet(int blocks, int absent, int patience) -> Tensor", fastrnn::cuda::meet);
  m.def("copied(Tensor x, int pending) -> Tensor", fastrnn::cuda::copied);
  m.def("lone() -> ()", fastrnn::cuda::lone);
  m.def("shuffle_sum() -> Tensor", fastrnn::cuda::shuffle_sum);
  m.def("math(str name, Tensor x) -> Tensor", fastrnn::cuda::math);
  m.def("tf32_operands(Tensor x) -> Tensor", fastrnn::cuda::tf32_operands);
}
