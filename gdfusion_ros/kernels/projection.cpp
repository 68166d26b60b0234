// Projection with exactly the roundings of the plain-torch twin: every step is rounded as there, products of matrices in
// their order and without fused multiply-add. In a standing scene, points fall on whole pixels, and
// whether they fall beside them in the last digit decides whether the cost volume takes them for unseen; the published
// weights were trained with that. This file is therefore compiled without contraction of its own.
#include "projection.h"

namespace {

constexpr float NEAREST_VISIBLE = 1e-3f;

}  // namespace

extern "C" void GDFUSION_LINE(GDFUSION_ISA)(
    const Projection* projection, const float* x, float y, int64_t w, const float* depths, int64_t depth_count,
    const float* last_cell, float* cells) {
    const Projection p = *projection;
    const float shifted_y = y - p.image_shift[1];
    for (int64_t column = 0; column < w; ++column) {
        const float shifted_x = x[column] - p.image_shift[0];
        const float u = (p.calibrated_from_image[0] * shifted_x + p.calibrated_from_image[1] * shifted_y);
        const float v = (p.calibrated_from_image[2] * shifted_x + p.calibrated_from_image[3] * shifted_y);
        float* to = cells + column * depth_count * 2;
        const float *c = p.camera_from_calibrated, *k = p.calibrated_from_camera;
#pragma omp simd
        for (int64_t d = 0; d < depth_count; ++d) {
            const float a = u * depths[d], b = v * depths[d], e = depths[d];
            const float px = ((c[0] * a + c[1] * b) + c[2] * e) + p.camera_shift[0];
            const float py = ((c[3] * a + c[4] * b) + c[5] * e) + p.camera_shift[1];
            const float pz = ((c[6] * a + c[7] * b) + c[8] * e) + p.camera_shift[2];
            const bool visible = pz >= NEAREST_VISIBLE;
            const float z = visible ? pz : 1.0f;
            const float s = ((k[0] * px + k[1] * py) + k[2] * pz) / z;
            const float t = ((k[3] * px + k[4] * py) + k[5] * pz) / z;
            const float image_x = (p.image_from_calibrated[0] * s + p.image_from_calibrated[1] * t) + p.shift[0];
            const float image_y = (p.image_from_calibrated[2] * s + p.image_from_calibrated[3] * t) + p.shift[1];
            const float normal_x = image_x / p.last_pixel[0] * 2.0f - 1.0f;
            const float normal_y = image_y / p.last_pixel[1] * 2.0f - 1.0f;
            to[2 * d] = visible ? (normal_x + 1.0f) / 2.0f * last_cell[0] : -2.0f;
            to[2 * d + 1] = visible ? (normal_y + 1.0f) / 2.0f * last_cell[1] : -2.0f;
        }
    }
}
