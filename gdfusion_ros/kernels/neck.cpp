// The neck of a voxel encoder: the finest map through a 1x1x1 convolution, plus coarser maps resized to its size, then a
// ReLU; one pass, row by row, instead of a pass for each product, resized map and sum. The twin is FusedNeck in
// gdfusion_ros/model/inference.py.
#include "simd.h"

namespace {

// The two cells that a place between a coarser map's cells lies between (corners aligned), and the share of the second.
struct Between {
    int64_t low, high;
    float share;

    Between(int64_t i, int64_t size, int64_t coarse) {
        const float place = size > 1 ? static_cast<float>(coarse - 1) / static_cast<float>(size - 1) * static_cast<float>(i) : 0;
        low = static_cast<int64_t>(place), high = least(low + 1, coarse - 1);
        share = place - static_cast<float>(low);
    }
};

struct Size {
    int64_t a, b, c;
};

// Adds a coarser map (coarse.a, coarse.b, coarse.c, channels) at row `a` of the finer size to out (size.b, size.c, wide).
// line: scratch of coarse.c cells.
void add_resized(const float* map, Size coarse, int64_t channels, int64_t a, Size size, float* line, int64_t wide, float* out) {
    const Between row(a, size.a, coarse.a);
    for (int64_t b = 0; b < size.b; ++b) {
        const Between column(b, size.b, coarse.b);
        const float* corners[4] = {
            map + (row.low * coarse.b + column.low) * coarse.c * channels,
            map + (row.low * coarse.b + column.high) * coarse.c * channels,
            map + (row.high * coarse.b + column.low) * coarse.c * channels,
            map + (row.high * coarse.b + column.high) * coarse.c * channels,
        };
        const float shares[4] = {
            (1 - row.share) * (1 - column.share),
            (1 - row.share) * column.share,
            row.share * (1 - column.share),
            row.share * column.share,
        };
        const int64_t count = coarse.c * channels;
        for (int64_t k = 0; k < count; k += LANES) {
            const int64_t width = least(LANES, count - k);
            Vector total{};
            for (int i = 0; i < 4; ++i) total += load_part(corners[i] + k, width) * shares[i];
            store_part(line + k, total, width);
        }
        for (int64_t c = 0; c < size.c; ++c) {
            const Between cell(c, size.c, coarse.c);
            const float *low = line + cell.low * channels, *high = line + cell.high * channels;
            float* to = out + (b * size.c + c) * wide;
            for (int64_t k = 0; k < channels; k += LANES) {
                const int64_t width = least(LANES, channels - k);
                const Vector value = load_part(low + k, width) * (1 - cell.share) + load_part(high + k, width) * cell.share;
                store_part(to + k, load_part(to + k, width) + value, width);
            }
        }
    }
}

}  // namespace

// finest: (A, B, C, inputs). weights: packed for multiply(); bias: padded like their columns. second, third: coarser maps
// (A', B', C', outputs), or null. out: (A, B, C, outputs).
GDFUSION_KERNEL(neck)
(const float* finest, int64_t inputs, const float* weights, const float* bias, int64_t outputs, int64_t size_a,
 int64_t size_b, int64_t size_c, const float* second, int64_t second_a, int64_t second_b, int64_t second_c,
 const float* third, int64_t third_a, int64_t third_b, int64_t third_c, float* out, int32_t threads) {
    const int64_t wide = round_up(outputs, PANEL), cells = size_b * size_c, whole = cells / ROWS * ROWS;
    const Size size{size_a, size_b, size_c};
#pragma omp parallel num_threads(threads)
    {
        Scratch row(round_up(cells, ROWS) * wide), rest(ROWS * inputs), line((second_c + third_c) * outputs);
#pragma omp for schedule(dynamic)
        for (int64_t a = 0; a < size_a; ++a) {
            const float* in = finest + a * cells * inputs;
            multiply(in, inputs, whole, weights, inputs, wide, bias, row.data, wide);
            if (whole < cells) {
                memcpy(rest.data, in + whole * inputs, static_cast<size_t>((cells - whole) * inputs) * sizeof(float));
                multiply(rest.data, inputs, ROWS, weights, inputs, wide, bias, row.data + whole * wide, wide);
            }
            if (second) add_resized(second, {second_a, second_b, second_c}, outputs, a, size, line.data, wide, row.data);
            if (third) add_resized(third, {third_a, third_b, third_c}, outputs, a, size, line.data, wide, row.data);
            for (int64_t cell = 0; cell < cells; ++cell) {
                float* to = out + (a * cells + cell) * outputs;
                for (int64_t k = 0; k < outputs; k += LANES)
                    store_part(to + k, larger(load(row.data + cell * wide + k), Vector{}), least(LANES, outputs - k));
            }
        }
    }
}
