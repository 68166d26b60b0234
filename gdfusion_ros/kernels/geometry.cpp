// The geometry cue in one pass: the last frame's depth logits at the points that this frame's pixels and depths stand for,
// the gate between both, and the gate between what comes of it and the single frame. The twin, with its formulas, is
// gdfusion_ros/model/fusion/geometry.py.
#include "projection.h"
#include "simd.h"

namespace {

// A map (h, w, depths) at a column, row and depth in cells, interpolated; what lies outside counts as zero.
inline float sample(const float* map, int64_t h, int64_t w, int64_t depths, float column, float row, float depth) {
    // Written so that NaN is outside too.
    if (!(column > -1 && column < w && row > -1 && row < h && depth > -1 && depth < depths)) return 0.0f;
    const float left = floorf(column), top = floorf(row), near = floorf(depth);
    const float a = column - left, b = row - top, c = depth - near;
    const int64_t x = static_cast<int64_t>(left), y = static_cast<int64_t>(top), z = static_cast<int64_t>(near);
    const bool first = z >= 0, second = z + 1 < depths;
    float total = 0;
    for (int corner = 0; corner < 4; ++corner) {
        const int64_t down = corner >> 1, right = corner & 1;
        if (x + right < 0 || x + right >= w || y + down < 0 || y + down >= h) continue;
        const float* bins = map + ((y + down) * w + x + right) * depths + z;
        const float weight = (down ? b : 1 - b) * (right ? a : 1 - a);
        total += weight * ((first ? (1 - c) * bins[0] : 0.0f) + (second ? c * bins[1] : 0.0f));
    }
    return total;
}

// Two layers to the share that goes to the first half of each row: see _packed in gdfusion_ros/kernels/geometry.py.
struct Gate {
    const float *first, *first_bias, *last;
    float last_bias;

    void shares(const float* rows, int64_t count, int64_t inputs, int64_t wide, float* hidden, float* out) const {
        multiply(rows, inputs, count, first, inputs, wide, first_bias, hidden, wide);
        for (int64_t i = 0; i < count; ++i) {
            Vector total{};
            for (int64_t c = 0; c < wide; c += LANES) total += larger(load(hidden + i * wide + c), Vector{}) * load(last + c);
            out[i] = 1.0f / (1.0f + expf(-(sum(total) + last_bias)));
        }
    }
};

}  // namespace

// logits, single: (images, h, w, depths) of this frame; history: those kept by the last one, or null at a sequence's
// start; projections, x, y: as for cost_volume. Each gate: its first layer packed with `wide` columns, the bias and the
// last layer padded to that. kept: the fused logits; out: single + gain * (gated - single), never below 0; both as logits.
GDFUSION_KERNEL(geometry_fusion)
(const float* logits, const float* single, const float* history, const Projection* projections, const float* x_pixels,
 const float* y_pixels, const float* depths, const float* history_first, const float* history_bias,
 const float* history_last, float history_last_bias, const float* output_first, const float* output_bias,
 const float* output_last, float output_last_bias, float gain, int64_t images, int64_t h, int64_t w, int64_t depth_count,
 float* kept, float* out, int32_t threads) {
    const Gate history_gate{history_first, history_bias, history_last, history_last_bias};
    const Gate output_gate{output_first, output_bias, output_last, output_last_bias};
    const int64_t rows = round_up(w, ROWS), wide = round_up(depth_count, PANEL), both = 2 * depth_count;
    const float last_cell[2] = {static_cast<float>(w - 1), static_cast<float>(h - 1)};
    const float per_metre = static_cast<float>(depth_count - 1) / (depths[depth_count - 1] - depths[0]);
#pragma omp parallel num_threads(threads)
    {
        Scratch cells(w * both), distances(w * depth_count), pairs(rows * both), hidden(rows * wide), shares(rows);
#pragma omp for schedule(dynamic)
        for (int64_t line = 0; line < images * h; ++line) {
            const int64_t image = line / h, begin = line * w * depth_count;
            if (history) {
                const float* map = history + image * h * w * depth_count;
                GDFUSION_LINE(GDFUSION_ISA)(
                    projections + image, x_pixels, y_pixels[line % h], w, depths, depth_count, last_cell, cells.data,
                    distances.data);
                for (int64_t x = 0; x < w; ++x) {
                    float* pair = pairs.data + x * both;
                    const float *cell = cells.data + x * both, *distance = distances.data + x * depth_count;
                    for (int64_t d = 0; d < depth_count; ++d)
                        pair[d] = sample(
                            map, h, w, depth_count, cell[2 * d], cell[2 * d + 1], (distance[d] - depths[0]) * per_metre);
                    memcpy(pair + depth_count, logits + begin + x * depth_count, static_cast<size_t>(depth_count) * 4);
                }
                history_gate.shares(pairs.data, rows, both, wide, hidden.data, shares.data);
            }
            for (int64_t x = 0; x < w; ++x) {
                float* pair = pairs.data + x * both;
                const float *now = logits + begin + x * depth_count;
                const float share = shares.data[x];
                float* fused = kept + begin + x * depth_count;
                for (int64_t d = 0; d < depth_count; ++d)
                    fused[d] = history && pair[d] != 0 ? share * pair[d] + (1 - share) * now[d] : now[d];
                memcpy(pair, fused, static_cast<size_t>(depth_count) * 4);
                softmax(pair, depth_count);
                memcpy(pair + depth_count, single + begin + x * depth_count, static_cast<size_t>(depth_count) * 4);
            }
            output_gate.shares(pairs.data, rows, both, wide, hidden.data, shares.data);
            for (int64_t x = 0; x < w; ++x) {
                const float* pair = pairs.data + x * both;
                const float share = shares.data[x];
                float* to = out + begin + x * depth_count;
                for (int64_t d = 0; d < depth_count; ++d) {
                    const float alone = pair[depth_count + d], gated = share * pair[d] + (1 - share) * alone;
                    const float weight = alone + gain * (gated - alone);
                    to[d] = weight > 0 ? weight : 0.0f;
                }
            }
        }
    }
}
