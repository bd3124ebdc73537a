"""Detection in lidar point clouds: frames, boxes, pillars, networks and their evaluation."""
