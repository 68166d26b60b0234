// The stereo cost volume: every pixel of this image against the previous one, at every depth hypothesis.
//
// One pass: project (projection.cpp), sample, compare, softmax over depth. The twin, with its formulas, is
// gdfusion_ros/model/blocks/stereo.py.
#include <cmath>

#include "projection.h"
#include "simd.h"

namespace {

constexpr float UNSEEN_COST = 5.0f;

struct Corner {
    const float* row;
    float weight;
};

// A corner of the interpolation cell; outside the image it weighs nothing, as with padding by zeros.
inline Corner corner(const float* image, int64_t x, int64_t y, int64_t w, int64_t h, int64_t channels, float weight) {
    if (x < 0 || x >= w || y < 0 || y >= h) return {image, 0.0f};
    return {image + (y * w + x) * channels, weight};
}

inline float absolute_sum(const float* a, int64_t channels) {
    Vector total{};
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) total += magnitude(load(a + c));
    float rest = sum(total);
    for (; c < channels; ++c) rest += fabsf(a[c]);
    return rest;
}

inline float distance(const float* a, const Corner* k, int64_t channels) {
    Vector even{}, odd{};
    int64_t c = 0;
    for (; c + 2 * LANES <= channels; c += 2 * LANES) {
        const int64_t d = c + LANES;
        even += magnitude(
            load(k[0].row + c) * k[0].weight + load(k[1].row + c) * k[1].weight + load(k[2].row + c) * k[2].weight +
            load(k[3].row + c) * k[3].weight - load(a + c));
        odd += magnitude(
            load(k[0].row + d) * k[0].weight + load(k[1].row + d) * k[1].weight + load(k[2].row + d) * k[2].weight +
            load(k[3].row + d) * k[3].weight - load(a + d));
    }
    float rest = sum(even + odd);
    for (; c < channels; ++c) {
        float warped = 0;
        for (int i = 0; i < 4; ++i) warped += k[i].row[c] * k[i].weight;
        rest += fabsf(warped - a[c]);
    }
    return rest;
}

}  // namespace

// current, previous: (images, h, w, channels). projections: (images). x: (w), y: (h) network pixels of the cells' columns
// and rows. witness: the channel that tells whether the previous image shows anything. out: (images, h, w, depths),
// softmax over depths.
GDFUSION_KERNEL(cost_volume)
(const float* current, const float* previous, const Projection* projections, const float* x_pixels, const float* y_pixels,
 const float* depths, int64_t images, int64_t h, int64_t w, int64_t channels, int64_t depth_count, int64_t witness,
 float* out, int32_t threads) {
    const float last_cell[2] = {static_cast<float>(w - 1), static_cast<float>(h - 1)};
#pragma omp parallel num_threads(threads)
    {
        Scratch cells(w * depth_count * 2);
#pragma omp for schedule(dynamic)
        for (int64_t line = 0; line < images * h; ++line) {
            const int64_t image = line / h;
            const float* source = previous + image * h * w * channels;
            GDFUSION_LINE(GDFUSION_ISA)(
                projections + image, x_pixels, y_pixels[line % h], w, depths, depth_count, last_cell, cells.data,
                nullptr);
            for (int64_t x = 0; x < w; ++x) {
                const float* pixel = current + (line * w + x) * channels;
                float* cost = out + (line * w + x) * depth_count;
                const float nothing = absolute_sum(pixel, channels) + UNSEEN_COST;
                for (int64_t d = 0; d < depth_count; ++d) {
                    const float u = cells.data[(x * depth_count + d) * 2], v = cells.data[(x * depth_count + d) * 2 + 1];
                    // Written so that NaN is outside too.
                    if (!(u > -1 && u < w && v > -1 && v < h)) {
                        cost[d] = -nothing;
                        continue;
                    }
                    const float left = floorf(u), top = floorf(v), a = u - left, b = v - top;
                    const int64_t column = static_cast<int64_t>(left), row = static_cast<int64_t>(top);
                    const Corner corners[4] = {
                        corner(source, column, row, w, h, channels, (1 - a) * (1 - b)),
                        corner(source, column + 1, row, w, h, channels, a * (1 - b)),
                        corner(source, column, row + 1, w, h, channels, (1 - a) * b),
                        corner(source, column + 1, row + 1, w, h, channels, a * b),
                    };
                    float seen = 0;
                    for (const Corner& k : corners) seen += k.row[witness] * k.weight;
                    cost[d] = -(distance(pixel, corners, channels) + (seen == 0 ? UNSEEN_COST : 0.0f));
                }
                softmax(cost, depth_count);
            }
        }
    }
}
