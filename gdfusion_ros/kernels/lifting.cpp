// Lifting: image features into voxels. The twin is gdfusion_ros/model/blocks/lifting.py.
//
// Points are sorted by the cell they lie in once for each calibration (`rank_points`); a frame then only sums, cell by
// cell, and each output row belongs to one thread, so the result does not depend on the number of threads.
#include <cmath>

#include "simd.h"

namespace {

inline void add_scaled(float* sum, const float* row, float weight, int64_t channels) {
    for (int64_t c = 0; c < channels; c += LANES) {
        const int64_t width = channels - c;
        store_part(sum + c, load_part(sum + c, width) + load_part(row + c, width) * weight, width);
    }
}

}  // namespace

// Sort points by cell, stably. coordinates: (points, 3), x, y, z in cells. `first`: 0 drops points below cell 0; -1
// keeps the layer below as well, whose points reach cell 0 by interpolation. With `first` 0 the cell is truncated
// towards zero, with -1 it is the floor. Cells are counted from `first` in each axis, over (size - first) cells, y
// slowest, then x, then z. starts: (cells + 1); order: (points), of which starts[cells] are set.
GDFUSION_KERNEL(rank_points)
(const float* coordinates, int64_t points, int64_t size_x, int64_t size_y, int64_t size_z, int64_t first, int32_t* starts,
 int32_t* order, int32_t* cells, int32_t) {
    const int64_t nx = size_x - first, ny = size_y - first, nz = size_z - first, count = nx * ny * nz;
    memset(starts, 0, static_cast<size_t>(count + 1) * 4);
    for (int64_t i = 0; i < points; ++i) {
        const float* p = coordinates + 3 * i;
        const float x = first ? floorf(p[0]) : truncf(p[0]), y = first ? floorf(p[1]) : truncf(p[1]),
                    z = first ? floorf(p[2]) : truncf(p[2]);
        const bool inside = x >= first && x < size_x && y >= first && y < size_y && z >= first && z < size_z;
        cells[i] = -1;
        if (!inside) continue;
        const int64_t ix = static_cast<int64_t>(x) - first, iy = static_cast<int64_t>(y) - first,
                      iz = static_cast<int64_t>(z) - first;
        cells[i] = static_cast<int32_t>((iy * nx + ix) * nz + iz);
        ++starts[cells[i] + 1];
    }
    for (int64_t c = 0; c < count; ++c) starts[c + 1] += starts[c];
    for (int64_t i = 0; i < points; ++i)
        if (cells[i] >= 0) order[starts[cells[i]]++] = static_cast<int32_t>(i);
    for (int64_t c = count; c > 0; --c) starts[c] = starts[c - 1];
    starts[0] = 0;
}

// Nearest: each point whole into its cell; with a `spread` above 0, log(1 + spread * sum), for sums that are not
// negative. table: (cameras, pixels, channels); weights: (cameras, depths, pixels), whose flat index is the point's.
// out: (size_y, size_x, size_z, channels), all of it written.
GDFUSION_KERNEL(lift_nearest)
(const float* table, const float* weights, const int32_t* starts, const int32_t* order, int64_t depths, int64_t pixels,
 int64_t channels, int64_t cells, float spread, float* out, int32_t threads) {
    // 32 bits, as the points' numbers have: their division takes a third of the time.
    const uint32_t per_map = static_cast<uint32_t>(pixels), per_camera = static_cast<uint32_t>(depths * pixels);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1024)
    for (int64_t cell = 0; cell < cells; ++cell) {
        for (int64_t c = 0; c < channels; c += LANES) {
            Vector total{};
            for (int32_t k = starts[cell]; k < starts[cell + 1]; ++k) {
                const uint32_t point = static_cast<uint32_t>(order[k]);
                const int64_t row = point / per_camera * per_map + point % per_map;
                total += load_part(table + row * channels + c, channels - c) * weights[point];
            }
            // Most cells are empty, and the logarithm of 1 is 0.
            if (spread > 0 && starts[cell] < starts[cell + 1]) total = logarithm(total * spread + 1.0f);
            store_part(out + cell * channels + c, total, channels - c);
        }
    }
}

// The gradient of `lift_nearest`: `gradient` (cells, channels) of its output; `cell_of` (points), -1 outside the grid.
// of_table and of_weights are shaped as table and weights, all of them written.
GDFUSION_KERNEL(lift_nearest_gradient)
(const float* table, const float* weights, const float* gradient, const int32_t* cell_of, int64_t cameras, int64_t depths,
 int64_t pixels, int64_t channels, float* of_table, float* of_weights, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < cameras * pixels; ++row) {
        const int64_t camera = row / pixels, pixel = row % pixels;
        const float* features = table + row * channels;
        float* of_features = of_table + row * channels;
        memset(of_features, 0, static_cast<size_t>(channels) * 4);
        for (int64_t d = 0; d < depths; ++d) {
            const int64_t point = (camera * depths + d) * pixels + pixel;
            of_weights[point] = 0;
            if (cell_of[point] < 0) continue;
            const float* g = gradient + cell_of[point] * channels;
            add_scaled(of_features, g, weights[point], channels);
            Vector product{};
            for (int64_t c = 0; c < channels; c += LANES)
                product += load_part(features + c, channels - c) * load_part(g + c, channels - c);
            of_weights[point] = ::sum(product);
        }
    }
}

// Trilinear: each point over the eight cells around it. As above, with cells counted from -1.
GDFUSION_KERNEL(lift_trilinear)
(const float* table, const float* weights, const float* coordinates, const int32_t* starts, const int32_t* order,
 int64_t depths, int64_t pixels, int64_t channels, int64_t size_x, int64_t size_y, int64_t size_z, float* out,
 int32_t threads) {
    const int64_t nx = size_x + 1, nz = size_z + 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t y = 0; y < size_y; ++y) {
        memset(out + y * size_x * size_z * channels, 0, static_cast<size_t>(size_x * size_z * channels) * 4);
        // The points of the cells one row before reach this row with their upper corners, those of its own with the lower.
        for (int upper_y = 1; upper_y >= 0; --upper_y) {
            const int64_t row = y + 1 - upper_y;
            for (int64_t column = 0; column < nx; ++column)
                for (int64_t layer = 0; layer < nz; ++layer) {
                    const int64_t cell = (row * nx + column) * nz + layer;
                    for (int32_t k = starts[cell]; k < starts[cell + 1]; ++k) {
                        const int64_t point = order[k], camera = point / (depths * pixels), pixel = point % pixels;
                        const float* features = table + (camera * pixels + pixel) * channels;
                        const float* p = coordinates + 3 * point;
                        const float fx = p[0] - floorf(p[0]), fy = p[1] - floorf(p[1]), fz = p[2] - floorf(p[2]);
                        const float weight = weights[point] * (upper_y ? fy : 1 - fy);
                        for (int corner = 0; corner < 4; ++corner) {
                            const int right = corner >> 1, up = corner & 1;
                            const int64_t x = column - 1 + right, z = layer - 1 + up;
                            if (x < 0 || x >= size_x || z < 0 || z >= size_z) continue;
                            const float share = weight * (right ? fx : 1 - fx) * (up ? fz : 1 - fz);
                            add_scaled(out + ((y * size_x + x) * size_z + z) * channels, features, share, channels);
                        }
                    }
                }
        }
    }
}
