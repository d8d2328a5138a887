// The decoder's own kernels: writing keys and values to blocks, attention over block tables, SwiGLU.
//
// NVRTC compiles this file when a model is opened, for that model's shape. It includes no headers, so
// no CUDA toolkit is needed at run time. It is compiled with these macros:
//
//   HEAD    width of a head: even, at most 256
//   GROUP   query heads that share a KV head
//   ROWS    query rows of a tile: at most 16, and ROWS * HEAD is at most 1024
//   BF16    1 if elements are bf16, 0 if they are f32; sums are always in f32
//
// Layouts, last index fastest:
//
//   qkv     [token][query heads, then KV heads of keys, then KV heads of values][HEAD]
//   arena   [block][0 keys, 1 values][KV head][position in the block: 32][HEAD]
//   output  [token][query head][HEAD]
//
// A query's result depends on its own row and on the positions visible to it, summed in an order
// determined by those positions alone: not by the tile, the chunk or the step.

typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__

constexpr u32 LANES = 32;
constexpr u32 WARPS = 8;
/// Positions of a block, one per lane.
constexpr u32 BLOCK = 32;
constexpr u32 COLUMNS = (HEAD + LANES - 1) / LANES;
/// Rows of the small tile: those of one decoded token.
constexpr u32 FEW = GROUP < ROWS ? GROUP : ROWS;
constexpr u32 SCRATCH = HEAD > BLOCK ? HEAD : BLOCK;

#if BF16
struct Element {
    unsigned short bits;
};

DEVICE float widen(Element element) { return __uint_as_float((u32)element.bits << 16); }

/// Rounds to nearest, ties to even.
DEVICE void store(Element *to, float value) {
    u32 bits = __float_as_uint(value);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    to->bits = (unsigned short)(is_nan ? (bits >> 16) | 0x40u : rounded >> 16);
}
#else
typedef float Element;

DEVICE float widen(Element element) { return element; }
#endif

DEVICE void store(float *to, float value) { *to = value; }

struct alignas(16) Words {
    u32 at[4];
};

#if HEAD % 8 == 0
constexpr u32 STEP = 8;

/// Loads eight elements, aligned to 16 bytes, as whole words.
DEVICE void load(const Element *from, float (&to)[STEP]) {
    const Words *words = reinterpret_cast<const Words *>(from);
#if BF16
    Words eight = words[0];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        to[2 * i] = __uint_as_float(eight.at[i] << 16);
        to[2 * i + 1] = __uint_as_float(eight.at[i] & 0xffff0000u);
    }
#else
    Words first = words[0], second = words[1];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        to[i] = __uint_as_float(first.at[i]);
        to[4 + i] = __uint_as_float(second.at[i]);
    }
#endif
}
#else
constexpr u32 STEP = 2;

DEVICE void load(const Element *from, float (&to)[STEP]) {
    to[0] = widen(from[0]);
    to[1] = widen(from[1]);
}
#endif

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }

DEVICE float sum_of_warp(float value) {
#pragma unroll
    for (u32 mask = LANES / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
    return value;
}

DEVICE float peak_of_warp(float value) {
#pragma unroll
    for (u32 mask = LANES / 2; mask > 0; mask /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, mask));
    return value;
}

/// Rotation of a head's values: the table of angles, `[position][HEAD / 2]`, and Qwen3's norm before
/// it (`norm` is null for other families).
struct Rotation {
    const float *cosines;
    const float *sines;
    const float *norm;
    float epsilon;
};

/// Normalises one head's values, rotates them to their position and scales them; uses one warp.
template <typename To>
DEVICE void rotate_head(const Rotation &rotation, u32 position, const Element *from, float factor, To *to, u32 lane) {
    float scale = factor;
    if (rotation.norm) {
        float squares = 0.0f;
        for (u32 d = lane; d < HEAD; d += LANES) squares = fmaf(widen(from[d]), widen(from[d]), squares);
        scale = factor / sqrtf(sum_of_warp(squares) / HEAD + rotation.epsilon);
    }
    constexpr u32 HALF = HEAD / 2;
    for (u32 pair = lane; pair < HALF; pair += LANES) {
        float first = widen(from[pair]) * scale, second = widen(from[pair + HALF]) * scale;
        if (rotation.norm) {
            first *= rotation.norm[pair];
            second *= rotation.norm[pair + HALF];
        }
        float cosine = rotation.cosines[(u64)position * HALF + pair];
        float sine = rotation.sines[(u64)position * HALF + pair];
        store(to + pair, first * cosine - second * sine);
        store(to + pair + HALF, second * cosine + first * sine);
    }
}

/// Writes the keys and values of a step's tokens into their blocks.
///
/// Grid: (tokens, 2 * kv_heads), blocks of one warp. A token's slot is its block times 32 plus its
/// index in the block. Later slots keep an earlier owner's values; they are never read.
extern "C" __global__ void __launch_bounds__(LANES)
    write_kv(Element *arena, const Element *qkv, const u32 *slots, const u32 *positions, const float *cosines,
          const float *sines, const float *norm, float epsilon, u32 kv_heads) {
    u32 token = blockIdx.x, lane = threadIdx.x;
    u32 side = blockIdx.y / kv_heads, kv_head = blockIdx.y % kv_heads;
    u64 row = (u64)token * (GROUP + 2) * kv_heads + (GROUP + side) * kv_heads + kv_head;
    u32 slot = slots[token];
    u64 block = ((u64)(slot / BLOCK) * 2 + side) * kv_heads + kv_head;
    const Element *from = qkv + row * HEAD;
    Element *to = arena + (block * BLOCK + slot % BLOCK) * HEAD;
    if (side == 0) {
        Rotation rotation = {cosines, sines, norm, epsilon};
        rotate_head(rotation, positions[token], from, 1.0f, to, lane);
    } else {
        for (u32 d = lane; d < HEAD; d += LANES) to[d] = from[d];
    }
}

/// Some query rows of one chunk for one KV head. Row r has position r / GROUP in the chunk and query
/// head r % GROUP of the KV head.
struct Tile {
    const Element *arena;
    const u32 *table;
    u32 kv_head;
    u32 kv_heads;
    /// Position of the chunk's first token.
    u32 from;
    /// First row, and number of rows.
    u32 row;
    u32 rows;
    /// Sliding window in tokens, the current one included; 0 is unlimited.
    u32 window;

    __device__ u32 position(u32 r) const { return from + (row + r) / GROUP; }
};

/// One warp's share: every WARPS-th block of the positions visible to the tile, for COUNT rows.
///
/// Scores are computed by lane = position, weighted sums of values by lane = column. Leaves the
/// softmax's peaks and sums and the unscaled results in shared memory.
template <u32 COUNT>
DEVICE void attend_tile(const Tile &tile, const float *queries, float *scratch, float *peaks, float *sums) {
    u32 warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    float *weights = scratch + warp * ROWS * SCRATCH;
    float peak[COUNT], sum[COUNT], values[COUNT][COLUMNS];
#pragma unroll
    for (u32 r = 0; r < COUNT; ++r) {
        peak[r] = minus_infinity();
        sum[r] = 0.0f;
#pragma unroll
        for (u32 c = 0; c < COLUMNS; ++c) values[r][c] = 0.0f;
    }
    u32 end = tile.position(tile.rows - 1) + 1;
    u32 first = tile.position(0) + 1;
    first = tile.window == 0 || first < tile.window ? 0 : (first - tile.window) / BLOCK;
    u32 blocks = (end + BLOCK - 1) / BLOCK;
    for (u32 b = first + (warp + WARPS - first % WARPS) % WARPS; b < blocks; b += WARPS) {
        const Element *keys = tile.arena + ((u64)tile.table[b] * 2 * tile.kv_heads + tile.kv_head) * BLOCK * HEAD;
        const Element *block_values = keys + (u64)tile.kv_heads * BLOCK * HEAD;
        u32 position = b * BLOCK + lane;
        float scores[COUNT];
#pragma unroll
        for (u32 r = 0; r < COUNT; ++r) scores[r] = 0.0f;
        for (u32 d = 0; d < HEAD; d += STEP) {
            float key[STEP];
            load(keys + lane * HEAD + d, key);
#pragma unroll
            for (u32 r = 0; r < COUNT; ++r)
#pragma unroll
                for (u32 i = 0; i < STEP; ++i) scores[r] = fmaf(queries[r * HEAD + d + i], key[i], scores[r]);
        }
#pragma unroll
        for (u32 r = 0; r < COUNT; ++r) {
            u32 own = tile.position(r);
            bool seen = r < tile.rows && position <= own && (tile.window == 0 || own - position < tile.window);
            // Unwritten slots may hold anything, even NaN; they are replaced, not multiplied by 0.
            float score = seen ? scores[r] : minus_infinity();
            float top = fmaxf(peak[r], peak_of_warp(score));
            float weight = seen ? expf(score - top) : 0.0f;
            float shrink = peak[r] == top ? 1.0f : expf(peak[r] - top);
            peak[r] = top;
            sum[r] = fmaf(sum[r], shrink, sum_of_warp(weight));
#pragma unroll
            for (u32 c = 0; c < COLUMNS; ++c) values[r][c] *= shrink;
            weights[r * BLOCK + lane] = weight;
        }
        __syncwarp();
        u32 written = least(BLOCK, end - b * BLOCK);
        for (u32 p = 0; p < written; ++p) {
#pragma unroll
            for (u32 c = 0; c < COLUMNS; ++c) {
                u32 column = lane + c * LANES;
                float value = column < HEAD ? widen(block_values[p * HEAD + column]) : 0.0f;
#pragma unroll
                for (u32 r = 0; r < COUNT; ++r) values[r][c] = fmaf(weights[r * BLOCK + p], value, values[r][c]);
            }
        }
        __syncwarp();
    }
    // This warp's weights are no longer needed; their memory is reused for its results.
#pragma unroll
    for (u32 r = 0; r < COUNT; ++r) {
        if (lane == 0) {
            peaks[warp * ROWS + r] = peak[r];
            sums[warp * ROWS + r] = sum[r];
        }
#pragma unroll
        for (u32 c = 0; c < COLUMNS; ++c) {
            u32 column = lane + c * LANES;
            if (column < HEAD) scratch[(warp * ROWS + r) * SCRATCH + column] = values[r][c];
        }
    }
}

/// Attention of all chunks of a step over their block tables, for prefill and decode alike.
///
/// Grid: (tasks, kv_heads), blocks of 8 warps. A task is `[chunk, first row]`; a chunk is
/// `[first token of the step, tokens, position of the first, start of its table]`. The blocks are
/// distributed over the warps by index, and partial results are summed in the order of warps.
extern "C" __global__ void __launch_bounds__(WARPS *LANES)
    attend(Element *output, const Element *qkv, const Element *arena, const u32 *tasks, const u32 *chunks,
           const u32 *tables, const float *cosines, const float *sines, const float *norm, float epsilon,
           float scale, u32 window, u32 kv_heads) {
    alignas(16) __shared__ float queries[ROWS * HEAD];
    alignas(16) __shared__ float scratch[WARPS * ROWS * SCRATCH];
    __shared__ float peaks[WARPS * ROWS], sums[WARPS * ROWS];
    const u32 *chunk = chunks + 4 * tasks[2 * blockIdx.x];
    Tile tile;
    tile.arena = arena;
    tile.table = tables + chunk[3];
    tile.kv_head = blockIdx.y;
    tile.kv_heads = kv_heads;
    tile.from = chunk[2];
    tile.row = tasks[2 * blockIdx.x + 1];
    tile.rows = least(ROWS, chunk[1] * GROUP - tile.row);
    tile.window = window;
    Rotation rotation = {cosines, sines, norm, epsilon};
    u32 warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    for (u32 r = warp; r < ROWS; r += WARPS) {
        if (r < tile.rows) {
            u64 token = chunk[0] + (tile.row + r) / GROUP;
            u64 row = token * (GROUP + 2) * kv_heads + tile.kv_head * GROUP + (tile.row + r) % GROUP;
            rotate_head(rotation, tile.position(r), qkv + row * HEAD, scale, queries + r * HEAD, lane);
        } else {
            for (u32 d = lane; d < HEAD; d += LANES) queries[r * HEAD + d] = 0.0f;
        }
    }
    __syncthreads();
    if (tile.rows <= FEW) {
        attend_tile<FEW>(tile, queries, scratch, peaks, sums);
    } else {
        attend_tile<ROWS>(tile, queries, scratch, peaks, sums);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < tile.rows * HEAD; i += WARPS * LANES) {
        u32 r = i / HEAD, column = i % HEAD;
        float peak = peaks[r];
        for (u32 w = 1; w < WARPS; ++w) peak = fmaxf(peak, peaks[w * ROWS + r]);
        float sum = 0.0f, value = 0.0f;
        for (u32 w = 0; w < WARPS; ++w) {
            float part = expf(peaks[w * ROWS + r] - peak);
            sum = fmaf(sums[w * ROWS + r], part, sum);
            value = fmaf(scratch[(w * ROWS + r) * SCRATCH + column], part, value);
        }
        u64 token = chunk[0] + (tile.row + r) / GROUP;
        u64 head = token * GROUP * kv_heads + tile.kv_head * GROUP + (tile.row + r) % GROUP;
        store(output + head * HEAD + column, value / sum);
    }
}

/// SwiGLU: `[row][width of gates, then width of ups]` to `[row][width]`; one thread per element.
extern "C" __global__ void __launch_bounds__(WARPS *LANES)
    swiglu(Element *output, const Element *gate_up, u32 width, u32 count) {
    u32 at = blockIdx.x * WARPS * LANES + threadIdx.x;
    if (at >= count) return;
    const Element *row = gate_up + (u64)(at / width) * 2 * width;
    float gated = widen(row[at % width]), up = widen(row[width + at % width]);
    store(output + at, gated / (1.0f + expf(-gated)) * up);
}
