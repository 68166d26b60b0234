"""Scores: how right a grid is, against labels where there are some and against LiDAR where there are none."""
