// Projection with exactly the roundings of the plain-torch twin: every step is rounded as there, products of matrices in
// their order and without fused multiply-add. In a standing scene, points fall on whole pixels, and
// whether they fall beside them in the last digit decides whether the cost volume takes them for unseen; the published
// weights were trained with that. This file is therefore compiled without contraction of its own.
#include "projection.h"
#include "simd.h"

namespace {

constexpr float NEAREST_VISIBLE = 1e-3f;

}  // namespace

extern "C" void GDFUSION_LINE(GDFUSION_ISA)(
    const Projection* projection, const float* x, float y, int64_t w, const float* depths, int64_t depth_count,
    const float* last_cell, float* cells, float* distances) {
    const Projection p = *projection;
    const float shifted_y = y - p.image_shift[1], last_x = last_cell[0], last_y = last_cell[1];
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
            // Computed for every point and then chosen: a branch would keep the compiler from taking many at once.
            const float cell_x = (normal_x + 1.0f) / 2.0f * last_x, cell_y = (normal_y + 1.0f) / 2.0f * last_y;
            to[2 * d] = visible ? cell_x : -2.0f;
            to[2 * d + 1] = visible ? cell_y : -2.0f;
        }
        if (!distances) continue;
#pragma omp simd
        for (int64_t d = 0; d < depth_count; ++d)
            distances[column * depth_count + d] =
                ((c[6] * (u * depths[d]) + c[7] * (v * depths[d])) + c[8] * depths[d]) + p.camera_shift[2];
    }
}

// Where the pixels of every camera lie at every depth, in cells of the grid from its lower corner. pixels: (pixels, 2),
// x and y; rays: (cameras), see Ray. cells: (cameras, depths, pixels, 3).
GDFUSION_KERNEL(ray_cells)
(const float* pixels, const float* depths, const Ray* rays, const float* minimum, const float* cell_size, int64_t cameras,
 int64_t depth_count, int64_t pixel_count, float* cells, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t camera = 0; camera < cameras; ++camera)
        for (int64_t d = 0; d < depth_count; ++d) {
            const Ray r = rays[camera];
            const float depth = depths[d];
            const float *i = r.calibrated_from_image, *m = r.grid_from_calibrated, *a = r.augmentation;
            float* to = cells + (camera * depth_count + d) * pixel_count * 3;
#pragma omp simd
            for (int64_t n = 0; n < pixel_count; ++n) {
                const float shifted_x = pixels[2 * n] - r.image_shift[0], shifted_y = pixels[2 * n + 1] - r.image_shift[1];
                const float u = (i[0] * shifted_x + i[1] * shifted_y) * depth;
                const float v = (i[2] * shifted_x + i[3] * shifted_y) * depth;
                const float x = ((m[0] * u + m[1] * v) + m[2] * depth) + r.shift[0];
                const float y = ((m[3] * u + m[4] * v) + m[5] * depth) + r.shift[1];
                const float z = ((m[6] * u + m[7] * v) + m[8] * depth) + r.shift[2];
                to[3 * n] = (((a[0] * x + a[1] * y) + a[2] * z) - minimum[0]) / cell_size[0];
                to[3 * n + 1] = (((a[3] * x + a[4] * y) + a[5] * z) - minimum[1]) / cell_size[1];
                to[3 * n + 2] = (((a[6] * x + a[7] * y) + a[8] * z) - minimum[2]) / cell_size[2];
            }
        }
}
