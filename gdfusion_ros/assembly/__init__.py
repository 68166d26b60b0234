"""From messages to CameraFrame, free of clocks and of rclpy: the node and the bag reader share every line of it."""
