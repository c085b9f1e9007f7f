// Intel's matrix instructions: tiles of 16 rows of 64 bytes, and their products for bfloat16 and for bytes.
//
// In inline assembly: GCC 12 moves memory accesses across its intrinsics for them. FASTRNN_EMULATED_AMX
// gives them in plain C++, for tests on processors without them.

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Rows of 64 bytes: `rows` of them in the tiles before first_panel_tile, 16 in the others.
constexpr TileConfig tile_config(int rows, int first_panel_tile) {
  TileConfig c;
  for (int tile = 0; tile < 8; ++tile) {
    c.row_bytes[tile] = 64;
    c.rows[tile] = static_cast<uint8_t>(tile < first_panel_tile ? rows : 16);
  }
  return c;
}

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
// Unsigned bytes of a with signed ones of b.
template <int sum, int a, int b>
FASTRNN_INLINE void multiply_byte_tiles() {
  for (int m = 0; m < tiles.config.rows[sum]; ++m) {
    for (int n = 0; n < tiles.config.row_bytes[sum] / 4; ++n) {
      int32_t total;
      memcpy(&total, tiles.bytes[sum][m] + 4 * n, sizeof(total));
      for (int k = 0; k < tiles.config.row_bytes[a]; ++k) {
        total += tiles.bytes[a][m][k] * static_cast<signed char>(tiles.bytes[b][k / 4][4 * n + k % 4]);
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
FASTRNN_INLINE void multiply_byte_tiles() {
  asm volatile("tdpbusd %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(b), "i"(a), "i"(sum));
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
  static constexpr TileConfig config = tile_config(rows, first_b);
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

// The same of bytes (int8.inl.h), without accumulation: the sums start from what follows the panel's last
// row.
template <int rows, int vectors>
void multiply_int8_by_tiles(int64_t k, const QuantizedByte* const* a, const int8_t* panel,
                            int64_t panel_row, float* acc, bool /*accumulate*/) {
  constexpr int row_bytes = 64, tile_a = vectors, first_b = tile_a + 1, lanes = 16;
  constexpr auto columns = std::make_integer_sequence<int, vectors>{};
  static constexpr TileConfig config = tile_config(rows, first_b);
  const int8_t* const starts = panel + k * vectors * lanes;
  configure_tiles(config);
  for_constants(columns,
                [&](auto n) __attribute__((always_inline)) { load_tile<n>(starts + n * row_bytes, 0); });
  const int64_t a_stride = rows > 1 ? a[1] - a[0] : 0;
  for (int64_t i = 0; i < k; i += row_bytes, panel += panel_row) {
    load_tile<tile_a>(a[0] + i, a_stride);
    for_constants(columns, [&](auto n) __attribute__((always_inline)) {
      constexpr int tile_b = first_b + n % (8 - first_b);
      load_tile<tile_b>(panel + n * row_bytes, vectors * row_bytes);
      multiply_byte_tiles<n, tile_a, tile_b>();
    });
  }
  alignas(64) int32_t sums[rows][vectors][lanes];
  for_constants(columns, [&](auto n) __attribute__((always_inline)) {
    store_tile<n>(sums[0][n], vectors * row_bytes);
  });
  release_tiles();
  const float* scales = reinterpret_cast<const float*>(starts) + vectors * lanes;
  for (int m = 0; m < rows; ++m) {
    float scale;
    memcpy(&scale, a[m] + k, sizeof(scale));
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) {
      Int32s sum;
      memcpy(&sum, sums[m][n], sizeof(sum));
      store(acc + (m * vectors + n) * lanes, dequantize(sum, scale, load(scales + n * lanes, lanes)),
            lanes);
    }
  }
}
