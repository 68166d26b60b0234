// From encoded voxels to logits, and from logits to labels. The twins are VoxelHead in
// gdfusion_ros/model/blocks/heads.py and OccupancyModel in gdfusion_ros/model/model.py.
#include <cmath>

#include "simd.h"

namespace {

constexpr int64_t TILE = 48;
constexpr float EXCLUDED = 1e30f;

}  // namespace

// out (count, classes) = last @ softplus(first @ voxel + first_bias) + last_bias. `first` is packed with `hidden` columns,
// a multiple of PANEL; `last` (hidden rows) with classes rounded up to PANEL.
GDFUSION_KERNEL(classifier)
(const float* voxels, const float* first, const float* first_bias, const float* last, const float* last_bias,
 int64_t count, int64_t channels, int64_t hidden, int64_t classes, float* out, int32_t threads) {
    const int64_t wide = round_up(classes, PANEL);
#pragma omp parallel num_threads(threads)
    {
        Scratch rows(TILE * channels), middle(TILE * hidden), result(TILE * wide);
#pragma omp for schedule(dynamic, 16)
        for (int64_t begin = 0; begin < count; begin += TILE) {
            const int64_t tile = least(TILE, count - begin);
            memcpy(rows.data, voxels + begin * channels, static_cast<size_t>(tile * channels) * 4);
            multiply(rows.data, channels, TILE, first, channels, hidden, first_bias, middle.data, hidden);
            for (int64_t i = 0; i < tile * hidden; i += LANES) store(middle.data + i, softplus(load(middle.data + i)));
            multiply(middle.data, hidden, TILE, last, hidden, wide, last_bias, result.data, wide);
            for (int64_t i = 0; i < tile; ++i)
                memcpy(out + (begin + i) * classes, result.data + i * wide, static_cast<size_t>(classes) * 4);
        }
    }
}

// The largest logit of each voxel. logits: (Y, X, Z, channels), `step` floats from one voxel to the next; the first
// `skipped` are never a label;
// `allowed`: (channels - skipped) bytes, 0 where a label is excluded. labels, confidence: (X, Y, Z); confidence is the
// winner's probability, 255 = 1. The first of equal logits wins.
GDFUSION_KERNEL(classify)
(const float* logits, int64_t step, const uint8_t* allowed, int64_t channels, int64_t skipped, int64_t size_x,
 int64_t size_y, int64_t size_z, uint8_t* labels, uint8_t* confidence, int32_t threads) {
    const int64_t classes = channels - skipped, wide = round_up(classes, LANES);
#pragma omp parallel num_threads(threads)
    {
        // Added to logits: nothing, or so much that the label cannot win.
        Scratch values(wide), penalty(wide);
        for (int64_t k = 0; k < wide; ++k) penalty.data[k] = k < classes && allowed[k] ? 0.0f : -EXCLUDED;
#pragma omp for schedule(dynamic)
        for (int64_t x = 0; x < size_x; ++x)
            for (int64_t y = 0; y < size_y; ++y)
                for (int64_t z = 0; z < size_z; ++z) {
                    const float* from = logits + ((y * size_x + x) * size_z + z) * step + skipped;
                    Vector highest = splat(-EXCLUDED);
                    for (int64_t k = 0; k < wide; k += LANES) {
                        const Vector part = load_part(from + k, classes - k) + load(penalty.data + k);
                        store(values.data + k, part);
                        highest = larger(part, highest);
                    }
                    const float best = maximum(highest);
                    int64_t winner = 0;
#if defined(__AVX512F__)
                    for (int64_t k = 0; k < wide; k += LANES) {
                        const __m512 part = reinterpret_cast<__m512>(load(values.data + k));
                        const __mmask16 equal = _mm512_cmp_ps_mask(part, _mm512_set1_ps(best), _CMP_EQ_OQ);
                        winner = k + (equal ? __builtin_ctz(equal) : LANES);
                        if (equal) break;
                    }
                    winner = least(winner, classes - 1);
#else
                    while (winner + 1 < classes && values.data[winner] != best) ++winner;
#endif
                    Vector total{};
                    for (int64_t k = 0; k < wide; k += LANES) total += exponential(load(values.data + k) - best);
                    const int64_t to = (x * size_y + y) * size_z + z;
                    labels[to] = static_cast<uint8_t>(winner);
                    // To even at a half, as torch rounds.
                    confidence[to] = static_cast<uint8_t>(nearbyintf(255.0f / sum(total)));
                }
    }
}
