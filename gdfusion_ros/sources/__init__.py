"""Where camera frames come from. Each source iterates CameraFrames in order of time."""
