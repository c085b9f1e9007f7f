// Intel's matrix instructions: tiles of 16 rows of 64 bytes, and their product for bfloat16.
//
// In inline assembly: GCC 12 moves memory accesses across its intrinsics for them. FASTRNN_EMULATED_AMX
// gives them in plain C++, for tests on processors without them.

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#ifdef FASTRNN_EMULATED_AMX

struct Tiles {
  TileConfig config;
  unsigned char bytes[8][16][64];
};
inline thread_local Tiles tiles;

FASTRNN_INLINE void configure_tiles(const TileConfig& config) { tiles.config = config; }
FASTRNN_INLINE void release_tiles() { tiles.config = {}; }

template <int tile>
FASTRNN_INLINE void load_tile(const void* from, int64_t stride) {
  for (int i = 0; i < tiles.config.rows[tile]; ++i) {
    memcpy(tiles.bytes[tile][i], static_cast<const char*>(from) + i * stride, tiles.config.row_bytes[tile]);
  }
}
template <int tile>
FASTRNN_INLINE void store_tile(void* to, int64_t stride) {
  for (int i = 0; i < tiles.config.rows[tile]; ++i) {
    memcpy(static_cast<char*>(to) + i * stride, tiles.bytes[tile][i], tiles.config.row_bytes[tile]);
  }
}
template <int tile>
FASTRNN_INLINE void clear_tile() {
  memset(tiles.bytes[tile], 0, sizeof(tiles.bytes[tile]));
}
template <int sum, int a, int b>
FASTRNN_INLINE void multiply_tiles() {
  const auto number = [](const unsigned char* from) __attribute__((always_inline)) {
    uint16_t bits;
    memcpy(&bits, from, sizeof(bits));
    return bits_as<float>(static_cast<uint32_t>(bits) << 16);
  };
  for (int m = 0; m < tiles.config.rows[sum]; ++m) {
    for (int n = 0; n < tiles.config.row_bytes[sum] / 4; ++n) {
      float total;
      memcpy(&total, tiles.bytes[sum][m] + 4 * n, sizeof(total));
      for (int k = 0; k < tiles.config.row_bytes[a] / 2; ++k) {
        total += number(tiles.bytes[a][m] + 2 * k) * number(tiles.bytes[b][k / 2] + 4 * n + 2 * (k % 2));
      }
      memcpy(tiles.bytes[sum][m] + 4 * n, &total, sizeof(total));
    }
  }
}

#else

FASTRNN_INLINE void configure_tiles(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(config));
}
FASTRNN_INLINE void release_tiles() { asm volatile("tilerelease"); }

template <int tile>
FASTRNN_INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
FASTRNN_INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
FASTRNN_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
template <int sum, int a, int b>
FASTRNN_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(b), "i"(a), "i"(sum));
}

#endif

// kernels.h: Multiply, by matrix tiles: one of up to 16 rows of a with `vectors` of a panel. A row consists
// of pairs: two bfloat16 along k, or the high and the low part of a float. In the second case a pair times
// a pair is high * high + low * low, and with the parts of `a` exchanged low * high + high * low.
template <int rows, int vectors, class Operand>
void multiply_by_tiles(int64_t k, const Operand* const* a, const Operand* panel, int64_t panel_row,
                       float* acc, bool accumulate) {
  constexpr bool split = std::is_same_v<Operand, SplitFloat>;
  constexpr int row_bytes = 64, k_tile = row_bytes / sizeof(Operand);
  constexpr int tile_a = vectors, exchanged_a = tile_a + split, first_b = exchanged_a + 1;
  constexpr auto columns = std::make_integer_sequence<int, vectors>{};
  static constexpr TileConfig config = [] {
    TileConfig c;
    for (int tile = 0; tile < 8; ++tile) {
      c.row_bytes[tile] = row_bytes;
      c.rows[tile] = tile < first_b ? rows : 16;
    }
    return c;
  }();
  configure_tiles(config);
  for_constants(columns, [&](auto n) __attribute__((always_inline)) {
    if (accumulate) {
      load_tile<n>(acc + n * 16, vectors * row_bytes);
    } else {
      clear_tile<n>();
    }
  });
  const int64_t a_stride = rows > 1 ? (a[1] - a[0]) * int64_t{sizeof(Operand)} : 0;
  const Operand* row = a[0];
  for (int64_t i = 0; i < k; i += k_tile, row += k_tile, panel += panel_row) {
    load_tile<tile_a>(row, a_stride);
    if constexpr (split) {
      alignas(64) Bits32 exchanged[rows];
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        memcpy(&exchanged[m], a[m] + i, row_bytes);
        exchanged[m] = exchanged[m] << 16 | exchanged[m] >> 16;
      }
      load_tile<exchanged_a>(exchanged, row_bytes);
    }
    for_constants(columns, [&](auto n) __attribute__((always_inline)) {
      constexpr int tile_b = first_b + n % (8 - first_b);
      load_tile<tile_b>(panel + n * (64 / sizeof(Operand)), vectors * row_bytes);
      multiply_tiles<n, tile_a, tile_b>();
      if constexpr (split) multiply_tiles<n, exchanged_a, tile_b>();
    });
  }
  for_constants(columns, [&](auto n) __attribute__((always_inline)) {
    store_tile<n>(acc + n * 16, vectors * row_bytes);
  });
  release_tiles();
}
