// The scene cue in two passes over the voxels. The twin, with its formulas, is gdfusion_ros/model/fusion/scene.py.
//
// Products of matrices are taken beforehand, so that neither pass forms what is only summed: the first needs the centred
// z and the target of each voxel u, both linear in u, and sums dz u^T instead of dz k^T; the caller multiplies that by
// K^T. Each layer norm's mean is taken out by centring its matrix.
#include <cmath>

#include "simd.h"

namespace {

constexpr float EPSILON = 1e-6f;
constexpr int64_t TILE = 48;
constexpr int64_t CHUNK = TILE * 64;  // voxels that are summed in float32 before they go into a sum in double

// 1 / deviation of TILE rows z (each `step` floats, `wide` of them in use), over `channels`. All rows before anything is
// made of them: one row's sums, root and division would be waited for.
void deviations(const float* z, int64_t step, int64_t wide, int64_t channels, float* inverse) {
    for (int64_t i = 0; i < TILE; ++i) {
        Vector squares{};
        for (int64_t c = 0; c < wide; c += LANES) squares += load(z + i * step + c) * load(z + i * step + c);
        inverse[i] = sum(squares);
    }
    for (int64_t i = 0; i < TILE; ++i) inverse[i] = 1.0f / sqrtf(inverse[i] / channels + EPSILON);
}

// Adds the outer products of TILE rows: sums[i][0:wide] += sum_t left[t][i] * right[t][0:wide] for i < count.
void add_outer(const float* left, const float* right, int64_t wide, int64_t count, float* sums) {
    for (int64_t column = 0; column < wide; column += PANEL)
        for (int64_t i = 0; i < count; i += ROWS) {
            const int64_t rows = least(ROWS, count - i);
            Vector a[ROWS], b[ROWS];
            for (int r = 0; r < ROWS; ++r) a[r] = b[r] = Vector{};
            for (int64_t t = 0; t < TILE; ++t) {
                const Vector x = load(right + t * wide + column), y = load(right + t * wide + column + LANES);
#pragma GCC unroll 6
                for (int r = 0; r < ROWS; ++r) {
                    // Rows beyond `count` read the next columns of `left`, which exist, and are not kept.
                    const Vector w = splat(left[t * (wide + ROWS) + i + r]);
                    a[r] += x * w, b[r] += y * w;
                }
            }
            for (int r = 0; r < rows; ++r) {
                float* row = sums + (i + r) * wide + column;
                store(row, load(row) + a[r]);
                store(row + LANES, load(row + LANES) + b[r]);
            }
        }
}

}  // namespace

// First pass. stacked: [centred W K | V - K], packed with 2 * wide columns (wide: C rounded up to PANEL); start: its
// constants (2 * wide). scale, shift: the layer norm's, padded with zeros to `wide`. sums, in double: (C, wide) of dz u^T,
// then `wide` each of dz, error * normal, error. All without the factor 1 / (voxels * C).
GDFUSION_KERNEL(scene_gradient)
(const float* voxels, const float* stacked, const float* start, const float* scale, const float* shift, int64_t count,
 int64_t channels, int64_t rounded, double* sums, int32_t threads) {
    const int64_t wide = round_up(channels, PANEL), chunks = (count + CHUNK - 1) / CHUNK, step = wide + ROWS,
                  entries = (channels + 3) * wide;
    float* partial = static_cast<float*>(malloc(static_cast<size_t>(chunks * entries) * 4));
    if (!partial) abort();
#pragma omp parallel num_threads(threads)
    {
        Scratch rows(TILE * wide), both(TILE * 2 * wide), d_z(TILE * step);
        Matrix matrix(stacked, channels, 2 * wide, TILE, rounded);
        float inverses[TILE];
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            float* own = partial + chunk * entries;
            memset(own, 0, static_cast<size_t>(entries) * 4);
            float *sum_z = own + channels * wide, *sum_scale = sum_z + wide, *sum_shift = sum_scale + wide;
            const int64_t end = least(count, (chunk + 1) * CHUNK);
            for (int64_t begin = chunk * CHUNK; begin < end; begin += TILE) {
                const int64_t tile = least(TILE, end - begin);
                if (tile < TILE) memset(d_z.data, 0, static_cast<size_t>(TILE * step) * 4);
                // Padded to whole vectors, as add_outer reads them.
                for (int64_t i = 0; i < tile; ++i)
                    memcpy(rows.data + i * wide, voxels + (begin + i) * channels, static_cast<size_t>(channels) * 4);
                matrix.multiply(rows.data, wide, TILE, start, both.data, 2 * wide);
                deviations(both.data, 2 * wide, wide, channels, inverses);
                for (int64_t i = 0; i < tile; ++i) {
                    float *z = both.data + i * 2 * wide, *target = z + wide, *out = d_z.data + i * step;
                    const float inverse = inverses[i];
                    Vector total{}, aligned{};
                    for (int64_t c = 0; c < wide; c += LANES) {
                        const Vector normal = load(z + c) * inverse;
                        const Vector error = normal * load(scale + c) + load(shift + c) - load(target + c);
                        const Vector through = error * load(scale + c);
                        total += through, aligned += through * normal;
                        store(z + c, normal), store(out + c, through);
                        store(sum_scale + c, load(sum_scale + c) + error * normal);
                        store(sum_shift + c, load(sum_shift + c) + error);
                    }
                    const float mean = sum(total) / channels, along = sum(aligned) / channels, factor = 2 * inverse;
                    for (int64_t c = 0; c < wide; c += LANES) {
                        const Vector d = (load(out + c) - mean - load(z + c) * along) * factor;
                        store(out + c, d);
                        store(sum_z + c, load(sum_z + c) + d);
                    }
                }
                add_outer(d_z.data, rows.data, wide, channels, own);
            }
        }
    }
    // In the order of the chunks, whichever thread made them.
    memset(sums, 0, static_cast<size_t>(entries) * 8);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t e = 0; e < entries; ++e) sums[e] += partial[chunk * entries + e];
    free(partial);
}

// Second pass. stacked: [centred W Q | Q], packed with 2 * wide columns. out = layer_norm(z) * scale + shift + q; with
// `single` (count, channels) and the gain (padded to `wide`): single + gain * (that - single).
GDFUSION_KERNEL(scene_output)
(const float* voxels, const float* stacked, const float* start, const float* scale, const float* shift,
 const float* single, const float* gain, int64_t count, int64_t channels, int64_t rounded, float* out, int32_t threads) {
    const int64_t wide = round_up(channels, PANEL);
#pragma omp parallel num_threads(threads)
    {
        Scratch rows(TILE * channels), both(TILE * 2 * wide);
        Matrix matrix(stacked, channels, 2 * wide, TILE, rounded);
        float inverses[TILE];
#pragma omp for schedule(dynamic, 16)
        for (int64_t begin = 0; begin < count; begin += TILE) {
            const int64_t tile = least(TILE, count - begin);
            if (tile < TILE) memcpy(rows.data, voxels + begin * channels, static_cast<size_t>(tile * channels) * 4);
            matrix.multiply(
                tile < TILE ? rows.data : voxels + begin * channels, channels, TILE, start, both.data, 2 * wide);
            deviations(both.data, 2 * wide, wide, channels, inverses);
            for (int64_t i = 0; i < tile; ++i) {
                float *z = both.data + i * 2 * wide, *query = z + wide, *to = out + (begin + i) * channels;
                const float inverse = inverses[i];
                for (int64_t c = 0; c < channels; c += LANES) {
                    Vector adapted = load(z + c) * inverse * load(scale + c) + load(shift + c) + load(query + c);
                    if (single) {
                        const Vector alone = load_part(single + (begin + i) * channels + c, channels - c);
                        adapted = alone + load(gain + c) * (adapted - alone);
                    }
                    store_part(to + c, adapted, channels - c);
                }
            }
        }
    }
}
