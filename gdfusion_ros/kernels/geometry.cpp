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

#if defined(__AVX512F__)
// As `sample`, for LANES depths of one pixel; cells: column and row of each. More than one depth.
inline void sample_lanes(
    const float* map, int64_t h, int64_t w, int64_t depths, const float* cells, Vector depth, float* out) {
    const __m512 low = _mm512_loadu_ps(cells), high = _mm512_loadu_ps(cells + LANES);
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Vector column = reinterpret_cast<Vector>(_mm512_permutex2var_ps(low, evens, high)),
                 row = reinterpret_cast<Vector>(
                     _mm512_permutex2var_ps(low, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), high));
    const float columns = static_cast<float>(w), rows = static_cast<float>(h), layers = static_cast<float>(depths);
    const Integers inside = (column > splat(-1.0f)) & (column < splat(columns)) & (row > splat(-1.0f)) &
                            (row < splat(rows)) & (depth > splat(-1.0f)) & (depth < splat(layers));
    const __mmask16 seen = _mm512_movepi32_mask(reinterpret_cast<__m512i>(inside));
    Vector total{};
    if (seen) {
        const auto floor = [](Vector v) {
            return reinterpret_cast<Vector>(_mm512_roundscale_ps(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEG_INF));
        };
        const auto whole = [](Vector v) { return __builtin_convertvector(v, Integers); };
        const Vector left = floor(column), top = floor(row), near = floor(depth);
        // Both depths of a corner lie side by side and come in one: at the ends, from one cell further in.
        const Vector begin = larger(smaller(near, splat(layers - 2)), Vector{});
        const Vector c = depth - near, shift = near - begin;  // -1, 0 or 1
        const Vector first = select(shift == Vector{}, 1.0f - c, select(shift < Vector{}, c, Vector{}));
        const Vector second = select(shift == Vector{}, c, select(shift > Vector{}, 1.0f - c, Vector{}));
        for (int corner = 0; corner < 4; ++corner) {
            const Vector x = left + static_cast<float>(corner & 1), y = top + static_cast<float>(corner >> 1);
            const Vector a = corner & 1 ? column - left : 1.0f - (column - left),
                         b = corner >> 1 ? row - top : 1.0f - (row - top);
            const Integers there = (x >= Vector{}) & (x < splat(columns)) & (y >= Vector{}) & (y < splat(rows));
            const Vector weight = select(there, a * b, Vector{});
            const __mmask16 taken = _mm512_movepi32_mask(reinterpret_cast<__m512i>(there & inside));
            const __m512i index = reinterpret_cast<__m512i>(
                (whole(y) * static_cast<int32_t>(w) + whole(x)) * static_cast<int32_t>(depths) + whole(begin));
            const __m512d nothing = _mm512_setzero_pd();
            const __m512d lower = _mm512_mask_i32gather_pd(
                nothing, static_cast<__mmask8>(taken), _mm512_castsi512_si256(index), map, 4);
            const __m512d upper = _mm512_mask_i32gather_pd(
                nothing, static_cast<__mmask8>(taken >> 8), _mm512_extracti64x4_epi64(index, 1), map, 4);
            const __m512 pairs = _mm512_castpd_ps(lower), more = _mm512_castpd_ps(upper);
            const Vector bins = reinterpret_cast<Vector>(_mm512_permutex2var_ps(pairs, evens, more)),
                         next = reinterpret_cast<Vector>(
                             _mm512_permutex2var_ps(pairs, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), more));
            total += weight * (first * bins + second * next);
        }
        total = select(inside, total, Vector{});
    }
    store(out, total);
}
#endif

// Two layers to the share that goes to the first half of each row: see _packed in gdfusion_ros/kernels/geometry.py.
struct Gate {
    Matrix first;
    const float *first_bias, *last;
    float last_bias;

    void shares(const float* rows, int64_t count, int64_t inputs, int64_t wide, float* hidden, float* out) {
        first.multiply(rows, inputs, count, first_bias, hidden, wide);
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
 int64_t rounded, float* kept, float* out, int32_t threads) {
    const int64_t rows = round_up(w, ROWS), wide = round_up(depth_count, PANEL), both = 2 * depth_count;
    const float last_cell[2] = {static_cast<float>(w - 1), static_cast<float>(h - 1)};
    const float per_metre = static_cast<float>(depth_count - 1) / (depths[depth_count - 1] - depths[0]);
#pragma omp parallel num_threads(threads)
    {
        Scratch cells(w * both), distances(w * depth_count), pairs(rows * both), hidden(rows * wide), shares(rows);
        Gate history_gate{{history_first, both, wide, rows, rounded != 0}, history_bias, history_last, history_last_bias};
        Gate output_gate{{output_first, both, wide, rows, rounded != 0}, output_bias, output_last, output_last_bias};
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
                    int64_t d = 0;
#if defined(__AVX512F__)
                    if (depth_count > 1)
                        for (; d + LANES <= depth_count; d += LANES)
                            sample_lanes(
                                map, h, w, depth_count, cell + 2 * d, (load(distance + d) - depths[0]) * per_metre, pair + d);
#endif
                    for (; d < depth_count; ++d)
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
