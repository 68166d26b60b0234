// Where the pixels of one line lie in the previous image.
#pragma once

#include <cstdint>

#define GDFUSION_LINE2(isa) gdfusion_project_line_##isa
#define GDFUSION_LINE(isa) GDFUSION_LINE2(isa)

// What the projection of one image needs, as projection_steps in gdfusion_ros/model/blocks/cameras.py says.
struct Projection {
    float image_shift[2], calibrated_from_image[4];
    float camera_from_calibrated[9], camera_shift[3];
    float calibrated_from_camera[6];
    float image_from_calibrated[4], shift[2];
    float last_pixel[2];
};

// What places the pixels of one image in the grid's frame, as ray_cells in gdfusion_ros/kernels/lifting.py says.
struct Ray {
    float image_shift[2], calibrated_from_image[4];
    float grid_from_calibrated[9], shift[3], augmentation[9];
};

// Cells (columns, rows) in the previous image of the pixels (x[0..w), y) at every depth, (w, depths, 2); -2 where the
// point is behind the camera. `last_cell`: column and row of the map's last cell. distances: (w, depths), the points'
// depths in the previous camera, or null.
extern "C" void GDFUSION_LINE(GDFUSION_ISA)(
    const Projection* projection, const float* x, float y, int64_t w, const float* depths, int64_t depth_count,
    const float* last_cell, float* cells, float* distances);
