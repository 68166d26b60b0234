// What the previous frame's voxels say about this one's: the motion cue, the warp, and the voxel cue.
// The twins, with their formulas, are gdfusion_ros/model/fusion/{motion,warp,voxel}.py.
//
// Volumes are rows of channels: (Y, X, Z, C), or (Y, X, C) for flat grids, which here have Z = 1. Positions have `dims`
// components x, y (, z) in cells of the previous grid.
#include <cmath>

#include "simd.h"

namespace {

constexpr float LARGEST_OFFSET = 20.0f;
constexpr int64_t TILE = 48;  // voxels that a thread carries through all steps; a multiple of ROWS

struct Grid {
    int64_t size[3];  // x, y, z

    int64_t row(int64_t x, int64_t y, int64_t z) const { return (y * size[0] + x) * size[2] + z; }
};

// The largest whole number that is not above x, for |x| < 2^31.
inline Vector floor_of(Vector x) {
    const Vector whole = __builtin_convertvector(__builtin_convertvector(x, Integers), Vector);
    return select(whole > x, whole - 1.0f, whole);
}

// What is not a number stays so, as in torch.
inline Vector clamp(Vector x, float low, float high) {
    return select(x < low, splat(low), select(x > high, splat(high), x));
}

template <int DIMS>
inline Integers are_inside(const Vector* position, const Grid& grid) {
    Integers inside = Integers{} == 0;
    for (int a = 0; a < DIMS; ++a) {
        const float last = static_cast<float>(grid.size[a] > 1 ? grid.size[a] - 1 : 1);
        inside &= magnitude(position[a] / last * 2 - 1) <= 1;
    }
    return inside;
}

// The values and derivatives of a volume of offsets at LANES positions, which are inside up to rounding and are clamped
// to the border.
template <int DIMS>
inline void sample_offsets(
    const float* volume, const Grid& grid, const Vector* position, Vector* value, Vector (*slope)[DIMS]) {
    Integers cell[2][3] = {};
    Vector share[2][DIMS], lean[2][DIMS], apart[DIMS];
    for (int a = 0; a < DIMS; ++a) {
        const Vector p = position[a], low = floor_of(p);
        const float limit = static_cast<float>(grid.size[a] - 1);
        const Vector from = clamp(low, 0, limit), to = clamp(low + 1, 0, limit);
        cell[0][a] = __builtin_convertvector(from, Integers), cell[1][a] = __builtin_convertvector(to, Integers);
        share[0][a] = 1 - (p - low), share[1][a] = p - low;
        // Derivatives weigh with the clamped corners (spec 4.3).
        lean[0][a] = to - p, lean[1][a] = p - from;
        apart[a] = select(to > from, splat(1.0f), Vector{});
    }
    const int32_t size_x = static_cast<int32_t>(grid.size[0]), size_z = static_cast<int32_t>(grid.size[2]);
    for (int c = 0; c < DIMS; ++c) {
        value[c] = Vector{};
        for (int a = 0; a < DIMS; ++a) slope[a][c] = Vector{};
    }
#pragma GCC unroll 8
    for (int corner = 0; corner < 1 << DIMS; ++corner) {
        const int side[3] = {corner & 1, corner >> 1 & 1, DIMS == 3 ? corner >> 2 & 1 : 0};
        const Integers row = (cell[side[1]][1] * size_x + cell[side[0]][0]) * size_z + cell[side[2]][2];
        Vector weight = share[side[0]][0], lean_weight[DIMS];
        for (int a = 1; a < DIMS; ++a) weight *= share[side[a]][a];
        for (int a = 0; a < DIMS; ++a) {
            lean_weight[a] = side[a] ? apart[a] : -apart[a];
            for (int o = 0; o < DIMS; ++o)
                if (o != a) lean_weight[a] *= lean[side[o]][o];
        }
        for (int c = 0; c < DIMS; ++c) {
            const Vector entry = gather(volume + c, row * DIMS);
            value[c] += weight * entry;
            for (int a = 0; a < DIMS; ++a) slope[a][c] += lean_weight[a] * entry;
        }
    }
}

// One line of the grid (all x and z of a y), LANES voxels at a time.
template <int DIMS>
void move(
    const float* voxels, int64_t channels, const float* weight, const float* bias, const float* previous,
    const float* matrix, const Grid& grid, float rate, float* offsets, float* positions, uint8_t* inside, int64_t y) {
    const int64_t begin = grid.row(0, y, 0), count = grid.size[0] * grid.size[2];
    int64_t x = 0, z = 0;
    for (int64_t n = 0; n < count; n += LANES) {
        const int64_t width = least(LANES, count - n);
        Vector products[DIMS][LANES] = {}, offset[DIMS], position[DIMS], xs{}, zs{};
        float x_of[LANES] = {}, z_of[LANES] = {};
        for (int64_t i = 0; i < width; ++i) {
            const float* features = voxels + (begin + n + i) * channels;
            Vector partial[DIMS] = {};
            for (int64_t c = 0; c < channels; c += LANES) {
                const Vector part = load_part(features + c, channels - c);
                for (int a = 0; a < DIMS; ++a) partial[a] += part * load_part(weight + a * channels + c, channels - c);
            }
            for (int a = 0; a < DIMS; ++a) products[a][i] = partial[a];
            x_of[i] = static_cast<float>(x), z_of[i] = static_cast<float>(z);
            if (++z == grid.size[2]) z = 0, ++x;
        }
        xs = load(x_of), zs = load(z_of);
        for (int a = 0; a < DIMS; ++a) {
            const float* m = matrix + 4 * a;
            offset[a] = clamp(bias[a] + sums(products[a]), -LARGEST_OFFSET, LARGEST_OFFSET);
            position[a] = m[0] * xs + m[1] * splat(static_cast<float>(y)) + m[2] * zs + m[3];
        }
        if (previous) {
            Vector moved[DIMS], value[DIMS], slope[DIMS][DIMS], error[DIMS];
            for (int a = 0; a < DIMS; ++a) moved[a] = position[a] + offset[a];
            const Integers seen = are_inside<DIMS>(moved, grid);
            for (int a = 0; a < DIMS; ++a) moved[a] = select(seen, moved[a], Vector{});
            sample_offsets<DIMS>(previous, grid, moved, value, slope);
            for (int a = 0; a < DIMS; ++a) error[a] = 2 * (value[a] - offset[a]);
            for (int a = 0; a < DIMS; ++a) {
                Vector through{};
                for (int c = 0; c < DIMS; ++c) through += slope[a][c] * error[c];
                const Vector gradient = clamp((through - error[a]) / DIMS, -LARGEST_OFFSET, LARGEST_OFFSET);
                offset[a] -= rate * select(seen, gradient, Vector{});
            }
        }
        float of_axis[2][DIMS][LANES];
        for (int a = 0; a < DIMS; ++a) {
            position[a] += offset[a];
            store(of_axis[0][a], offset[a]), store(of_axis[1][a], position[a]);
        }
        const Integers within = are_inside<DIMS>(position, grid);
        for (int64_t i = 0; i < width; ++i) {
            for (int a = 0; a < DIMS; ++a) {
                offsets[(begin + n + i) * DIMS + a] = of_axis[0][a][i];
                positions[(begin + n + i) * DIMS + a] = of_axis[1][a][i];
            }
            inside[begin + n + i] = within[i] != 0;
        }
    }
}

// out (channels) = the sum of `count` rows, each times its weight; COUNT: how many, where the compiler may know.
template <int COUNT>
inline void combine(const float* const* rows, const float* weights, int count, int64_t channels, float* out) {
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) {
        Vector total{};
        for (int k = 0; k < (COUNT ? COUNT : count); ++k) total += load(rows[k] + c) * weights[k];
        store(out + c, total);
    }
    if (c == channels) return;
    Vector total{};
    for (int k = 0; k < (COUNT ? COUNT : count); ++k) total += load_part(rows[k] + c, channels - c) * weights[k];
    store_part(out + c, total, channels - c);
}

// The history at a position, interpolated, zero outside the grid.
void sample(
    const float* history, int64_t channels, const Grid& grid, const float* position, int dims, float* out) {
    int64_t low[3] = {0, 0, 0};
    float fraction[3] = {0, 0, 0};
    const float* rows[8];
    float weights[8];
    int count = 0;
    for (int a = 0; a < dims; ++a) {
        const float p = grid.size[a] > 1 ? position[a] : 0.0f;
        if (!(p > -1 && p < grid.size[a])) {
            memset(out, 0, static_cast<size_t>(channels) * 4);
            return;
        }
        const float cell = floorf(p);
        low[a] = static_cast<int64_t>(cell), fraction[a] = p - cell;
    }
    bool within = true;
    for (int a = 0; a < dims; ++a) within = within && low[a] >= 0 && low[a] + 1 < grid.size[a];
    if (within && dims == 3) {
        // Most voxels: nothing to be asked of each corner.
        const float x = fraction[0], y = fraction[1], z = fraction[2];
        const float plane[4] = {(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y};
        const float* first = history + grid.row(low[0], low[1], low[2]) * channels;
        const int64_t along_x = grid.size[2] * channels, along_y = grid.size[0] * along_x;
        for (int corner = 0; corner < 4; ++corner) {
            rows[2 * corner] = first + (corner & 1) * along_x + (corner >> 1) * along_y;
            rows[2 * corner + 1] = rows[2 * corner] + channels;
            weights[2 * corner] = plane[corner] * (1 - z), weights[2 * corner + 1] = plane[corner] * z;
        }
        return combine<8>(rows, weights, 8, channels, out);
    }
    for (int corner = 0; corner < 1 << dims; ++corner) {
        float weight = 1;
        int64_t at[3] = {0, 0, 0};
        bool inside = true;
        for (int a = 0; a < dims; ++a) {
            const int side = corner >> a & 1;
            at[a] = low[a] + side;
            weight *= side ? fraction[a] : 1 - fraction[a];
            inside = inside && at[a] >= 0 && at[a] < grid.size[a];
        }
        if (!inside || weight == 0) continue;
        rows[count] = history + grid.row(at[0], at[1], at[2]) * channels;
        weights[count++] = weight;
    }
    combine<0>(rows, weights, count, channels, out);
}

}  // namespace

// The motion cue. weight: (dims, channels); bias: (dims); previous: offsets of the last frame (Y, X, Z, dims), or null at
// a sequence's start; matrix: (dims, 4), a cell (x, y, z, 1) to its ego-warped position. Writes the updated offsets, the
// positions of the history (ego motion and offsets), and whether these lie inside.
GDFUSION_KERNEL(motion)
(const float* voxels, const float* weight, const float* bias, const float* previous, const float* matrix, int64_t channels,
 int64_t size_x, int64_t size_y, int64_t size_z, int64_t dims, float rate, float* offsets, float* positions,
 uint8_t* inside, int32_t threads) {
    const Grid grid{{size_x, size_y, size_z}};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t y = 0; y < size_y; ++y) {
        if (dims == 3)
            move<3>(voxels, channels, weight, bias, previous, matrix, grid, rate, offsets, positions, inside, y);
        else
            move<2>(voxels, channels, weight, bias, previous, matrix, grid, rate, offsets, positions, inside, y);
    }
}

// The warp alone: out (Y, X, Z, C) is the history at the positions.
GDFUSION_KERNEL(warp)
(const float* history, const float* positions, int64_t channels, int64_t size_x, int64_t size_y, int64_t size_z,
 int64_t dims, float* out, int32_t threads) {
    const Grid grid{{size_x, size_y, size_z}};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t y = 0; y < size_y; ++y)
        for (int64_t voxel = grid.row(0, y, 0); voxel < grid.row(0, y + 1, 0); ++voxel)
            sample(history, channels, grid, positions + voxel * dims, dims, out + voxel * channels);
}

// The warp and the voxel cue: out = relu(merge @ [relu(each @ voxel + now), relu(each @ history + before)] + merge_bias).
// `each` (C rows) and `merge` (2 * wide rows) are packed for multiply() with `wide` columns, C rounded up to PANEL; norms
// are folded in, time embeddings are part of `now` and `before`.
GDFUSION_KERNEL(voxel_fusion)
(const float* voxels, const float* history, const float* positions, const float* each, const float* now,
 const float* before, const float* merge, const float* merge_bias, int64_t channels, int64_t size_x, int64_t size_y,
 int64_t size_z, int64_t dims, float* out, int32_t threads) {
    const Grid grid{{size_x, size_y, size_z}};
    const int64_t wide = round_up(channels, PANEL), count = size_x * size_y * size_z;
#pragma omp parallel num_threads(threads)
    {
        Scratch rows(TILE * channels), both(TILE * 2 * wide), result(TILE * wide);
#pragma omp for schedule(dynamic, 16)
        for (int64_t begin = 0; begin < count; begin += TILE) {
            const int64_t tile = least(TILE, count - begin);
            for (int history_half = 0; history_half < 2; ++history_half) {
                if (history_half)
                    for (int64_t i = 0; i < tile; ++i)
                        sample(history, channels, grid, positions + (begin + i) * dims, dims, rows.data + i * channels);
                else if (tile < TILE)
                    memcpy(rows.data, voxels + begin * channels, static_cast<size_t>(tile * channels) * 4);
                const float* half = history_half || tile < TILE ? rows.data : voxels + begin * channels;
                // The second half begins where the first one's channels end, over its padding.
                multiply(
                    half, channels, TILE, each, channels, wide, history_half ? before : now,
                    both.data + history_half * channels, 2 * wide);
            }
            for (int64_t i = 0; i < TILE * 2 * wide; i += LANES) store(both.data + i, larger(load(both.data + i), Vector{}));
            multiply(both.data, 2 * wide, TILE, merge, 2 * channels, wide, merge_bias, result.data, wide);
            for (int64_t i = 0; i < tile; ++i) {
                const float* from = result.data + i * wide;
                float* to = out + (begin + i) * channels;
                for (int64_t c = 0; c < channels; c += LANES)
                    store_part(to + c, larger(load(from + c), Vector{}), channels - c);
            }
        }
    }
}
